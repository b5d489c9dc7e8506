"""Where a number comes from: the commit and the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from envs.renderers import chosen_backend
from experiments.options.config import RunConfig

PACKAGES = ("kp3d_rl", "envs", "agents", "experiments")
"""The project's own."""
NUMERICAL = ("torch", "numpy", "mujoco", "mujoco_warp", "stable_baselines3", "sb3_contrib", "gymnasium")
"""Libraries whose version may change a number."""


def origin() -> dict[str, str]:
    """The commit and the machine that the numbers come from."""
    return {"commit": _git("rev-parse", "--short", "HEAD").stdout.strip() or "unknown", "machine": _machine()}


def circumstances(config: RunConfig) -> dict[str, str | int]:
    """What must be the same for a run to give the same numbers bit for bit, beside its configuration.

    :param config: of the run.
    """
    versions: dict[str, str | int] = {name: version(name) for name in NUMERICAL}
    renderer = chosen_backend(config.render.backend) if config.encoder.sees else "none"
    own: dict[str, str | int] = {"threads": torch.get_num_threads(), "renderer": renderer, "machine": _machine()}
    own["gpu"] = torch.cuda.get_device_name() if config.device != "cpu" and torch.cuda.is_available() else "none"
    return own | {"python": platform.python_version(), "code": code()} | versions


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask git about the folder that this file is in; the current one may be of another project."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@functools.cache
def code() -> str:
    """The commit that this process runs, and whether any code of it was changed."""
    changed = _git("diff", "--quiet", "HEAD", "--", ":/*.py").returncode
    return f"{origin()['commit']}{'-changed' if changed == 1 else ''}"


def sources() -> str:
    """A digest of the project's own Python code as it stands on the disk now."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _machine() -> str:
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{os.cpu_count()} cores, {model}, {platform.system()}"
