"""Measure how fast it is here: ``python -m experiments.bench``.

Prints tables, writes ``docs/bench.json`` with command, machine and commit, draws ``docs/bench.png`` and
``docs/bench-memory.png``, and fills the tables of the pages that ask for them.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.errors import UserError, unknown
from experiments.bench import learner, memory, nodes, training, triangulation, views
from experiments.bench.checkpoints import checkpoint_cost
from experiments.bench.looks import looks
from experiments.bench.report import write
from experiments.bench.scenes import hammer, reach
from experiments.options.cli import parse, run_main
from experiments.options.config import TrainConfig
from experiments.training.building import choose_device, use_threads

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class BenchConfig:
    """What to measure, and for how long.

    :param only: sections, separated by commas; by default all.
    :param seconds: about how long each thing is timed.
    :param minutes: about how long memory is watched.
    :param device: of the networks: auto, cpu, cuda.
    :param docs: folder to write to.
    """

    only: str | None = None
    seconds: float = 3.0
    minutes: float = 0.5
    device: str = "auto"
    docs: Path = Path("docs")

    def __post_init__(self) -> None:
        for name in ("seconds", "minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")


SECTIONS: dict[str, Callable[[BenchConfig, str], Rows]] = {
    "views": lambda config, device: [
        *views.renderers(hammer(), config.seconds, device),
        *views.renderers(reach(), config.seconds, device),
    ],
    "looks": lambda config, device: looks(config.docs),
    "workers": lambda config, device: views.workers(config.seconds),
    "nodes": lambda config, device: [
        *nodes.scaling(config.seconds),
        *nodes.scaling(config.seconds, "metaworld-hammer", 128),
    ],
    "learner": lambda config, device: learner.formulations(config.seconds, device),
    "triangulation": lambda config, device: triangulation.robust(config.seconds),
    "training": lambda config, device: training.whole_steps(TrainConfig(device=device), max(1, round(config.seconds))),
    "growth": lambda config, device: [
        *views.growth(config.seconds / 3),
        *learner.growth(config.seconds / 3, device),
    ],
    "checkpoints": lambda config, device: [
        checkpoint_cost(TrainConfig(device=device), steps=max(1, round(config.seconds)) * 1024),
        checkpoint_cost(TrainConfig(algorithm="sac", device=device), steps=max(1, round(config.seconds)) * 80),
    ],
    "memory": lambda config, device: [
        memory.worker_memory(),
        memory.replay_memory(),
        *memory.over_time(config.minutes),
    ],
}
"""What is measured, in this order."""


def main(argv: Sequence[str]) -> None:
    """Measure section by section, then write what was found."""
    config = parse(BenchConfig, argv)
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
        raise UserError("MuJoCo's own renderer needs to be told its platform: type make bench, or set MUJOCO_GL=egl")
    # The OpenGL that computes in software reads this once: ours sets it too, but others may render first.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    device = choose_device(config.device)
    use_threads(0)
    names = list(SECTIONS) if config.only is None else [name.strip() for name in config.only.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise unknown("section of the benchmark", name, SECTIONS)
    config.docs.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    made = {"device": card(device), "command": command(argv)}
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
        rows += [{"section": name} | made | row for row in SECTIONS[name](config, device)]
    write(config.docs, rows)


def card(device: str) -> str:
    """What a device is called in tables: a GPU by the name of the card.

    :param device: as torch calls it.
    """
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def command(argv: Sequence[str]) -> str:
    """What a person would type.

    :param argv: arguments of the program.
    """
    return f'make bench ARGS="{shlex.join(argv)}"' if argv else "make bench"


if __name__ == "__main__":
    run_main(main)
