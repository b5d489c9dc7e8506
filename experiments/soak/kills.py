"""Trainings that are killed at random moments and go on, against the same training left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.runs import Checkpoints
from kp3d_rl.storage.files import TENSOR_LIMIT, DamagedError, read_checked

ROOT = Path(__file__).parents[2]

_SMALL = (
    "--image-size 24 --encoder.keypoints 4 --encoder.width 4 --encoder.decoder-width 8 --auxiliary.warmup-steps 4 "
    "--auxiliary.steps-per-rollout 2 --auxiliary.buffer-frames 300 --log.evaluation-episodes 1 "
    "--log.evaluate-every 400 --log.picture-every 0 --log.wandb off --threads 1 --auxiliary.warmup-frames 64 "
)
_PPO = (
    "--total-steps 1088 --log.checkpoint-every 60 "
    "--ppo.envs 4 --ppo.steps 16 --ppo.batch-size 32 --ppo.epochs 2 --ppo.hidden 16 "
)
_SAC = (
    "--total-steps 480 --log.checkpoint-every 20 --sac.envs 4 --sac.batch-size 16 --sac.hidden 16 "
    "--sac.learning-starts 80 --sac.buffer-size 200 --sac.gradient-steps 2 "
)
_ALL_KEPT = "--render.workers 1 --log.checkpoints-kept 0 "
_PRUNED = "--render.workers 2 --log.checkpoints-kept 1 --log.checkpoints-kept-every 300 "
TRAININGS = {
    "ppo": f"{_SMALL} {_PPO} {_ALL_KEPT}".split(),
    "sac": f"{_SMALL} {_SAC} {_ALL_KEPT} --algorithm sac".split(),
    "ppo in workers": f"{_SMALL} {_PPO} {_PRUNED}".split(),
    "tqc": f"{_SMALL} {_SAC} {_PRUNED} --algorithm tqc".split(),
    "ppo on pixels": f"{_SMALL} {_PPO} {_PRUNED} --encoder.kind pixels --image-size 36".split(),
}
"""Short trainings by name. They write checkpoints all the time, so that many kills hit the middle of a write."""


@dataclass(frozen=True)
class Alone:
    """A training that nobody disturbed.

    :param run: its folder.
    :param arguments: of ``experiments.train``.
    :param seconds: that it took.
    """

    run: Path
    arguments: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of trainings that were killed.

    :param kills: by SIGKILL.
    :param in_a_write: how many of them left a half-written checkpoint or segment.
    :param resumes: how many of the kills a process went on from, or began anew where nothing had been written yet.
    :param lost: how many kills left an older newest checkpoint than there had been, or one that is not whole.
    :param finished: run folders of the trainings, all at their end.
    """

    kills: int
    in_a_write: int
    resumes: int
    lost: int
    finished: tuple[Path, ...]


def train(folder: Path, what: str) -> Alone:
    """A training that is left alone.

    :param folder: to work in; runs go to ``runs/`` there.
    :param what: of :data:`TRAININGS`.
    """
    started, arguments, name = time.monotonic(), TRAININGS[what], f"{what.replace(' ', '-')}-alone"
    _finish(_start(folder, "experiments.train", "--run", name, *arguments))
    run = folder / "runs" / "reach-multiview" / name
    return Alone(run, tuple(arguments), time.monotonic() - started)


def kill_again_and_again(folder: Path, name: str, alone: Alone, kills: int, seed: int) -> Outcome:
    """The same training, killed at moments that are spread evenly over the time that it takes alone.

    When one is finished, the next one begins, until there were enough kills; the last one then goes on to its end.

    :param folder: to work in; runs go to ``runs/`` there.
    :param name: of the runs, a number is added.
    :param alone: the training.
    :param kills: how many.
    :param seed: of the moments.
    :raises AssertionError: where a process does not go on, with what it said.
    """
    draw, killed, in_a_write, resumes, lost, runs = random.Random(seed), 0, 0, 0, 0, []
    while killed < kills:
        run = folder / "runs" / "reach-multiview" / f"{name}-{len(runs)}"
        runs.append(run)
        newest = -1
        while True:
            begins = not (run / "config.yaml").is_file()
            program = ("experiments.train", "--run", run.name, *alone.arguments) if begins else _resume(run)
            process = _start(folder, *program)
            if killed == kills or _ends_within(process, draw.uniform(0.0, alone.seconds)):
                _finish(process)
                resumes += not begins
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed, resumes = killed + 1, resumes + (not begins)
            in_a_write += any(_half_written(run))
            before, newest = newest, _newest(run)
            lost += newest < before
    return Outcome(killed, in_a_write, resumes, lost, tuple(runs))


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two runs: rows of numbers, and checkpoints, byte by byte; empty where nothing does.

    Beside weights and optimisers those hold random states, environments, the observations that come next, and the
    checksums of the replay's frames. What tells of the process is left out: places in files whose names hold a time.
    """
    found = {folder.name for folder in (run / "checkpoints").glob("[0-9]*")}
    expected = {folder.name for folder in (other / "checkpoints").glob("[0-9]*")}
    differ = [f"checkpoint {name} is there in one of them alone" for name in sorted(found ^ expected)]
    for name in sorted(found & expected):
        for file in ("policy.safetensors", "optimizer.safetensors", "training.safetensors"):
            first, second = (path / "checkpoints" / name / file for path in (run, other))
            if first.read_bytes() != second.read_bytes():
                differ.append(f"checkpoint {name}: {file}")
        first, second = (_timeless(path / "checkpoints" / name / "state.json") for path in (run, other))
        differ += [f"checkpoint {name}: {key} in state.json" for key in first if first[key] != second.get(key)]
    return differ + ([] if logged(run) == logged(other) else ["metrics.csv"])


def _timeless(path: Path) -> dict[str, Any]:
    state = json.loads(path.read_text())
    for key in ("tensorboard", "wandb"):
        state["state"].get("log", {}).pop(key, None)
    return state


def logged(run: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``, times aside."""
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    times = {"time/fps", "time/time_elapsed"}
    return [{key: value for key, value in sorted(row.items()) if key not in times} for row in rows]


def _resume(run: Path) -> tuple[str, ...]:
    return "experiments.resume", "--run", str(run)


def _start(folder: Path, module: str, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=folder, env=environment, **output)


def _ends_within(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def _newest(run: Path) -> int:
    """Step of the newest checkpoint that is whole, with its frames; -1 where there is none."""
    try:
        checkpoint = Checkpoints(run).read()
        for segment in checkpoint.segments:
            read_checked(run / "segments" / segment.name, {segment.name: segment.sha256}, TENSOR_LIMIT)
    except (UserError, DamagedError):
        return -1
    return checkpoint.step


def _half_written(run: Path) -> Iterator[Path]:
    yield from run.glob("checkpoints/.*.partial")
    yield from run.glob("segments/.*.partial")
    yield from run.glob(".*.partial")
