"""Where a number comes from: the commit and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from envs.renderers import chosen_backend
from experiments.config import RunConfig

NUMERICAL = ("torch", "numpy", "mujoco", "stable_baselines3", "gymnasium")
"""Libraries whose version may change a number."""


def origin() -> dict[str, str]:
    """The commit and the machine that the numbers come from."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {"commit": done.stdout.strip() or "unknown", "machine": _machine()}


def circumstances(config: RunConfig) -> dict[str, str | int]:
    """What must be the same for a run to give the same numbers bit for bit, beside its configuration.

    :param config: of the run.
    """
    versions: dict[str, str | int] = {name: importlib.metadata.version(name) for name in NUMERICAL}
    renderer = "none" if config.encoder.kind == "state" else chosen_backend(config.render.backend)
    own: dict[str, str | int] = {"threads": torch.get_num_threads(), "renderer": renderer, "machine": _machine()}
    return own | {"python": platform.python_version()} | versions


def _machine() -> str:
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{os.cpu_count()} cores, {model}, {platform.system()}"
