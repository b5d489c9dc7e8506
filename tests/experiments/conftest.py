"""Tiny real runs, trained once for all tests of the entry points."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.errors import UserError
from experiments import pretrain, train
from experiments.runs import Run
from experiments.studies import plain

TINY = (
    "--total-steps 160 --image-size 32 --ppo.envs 2 --ppo.steps 32 --ppo.batch-size 32 --ppo.epochs 1 --ppo.hidden 16 "
    "--encoder.keypoints 4 --encoder.width 4 --encoder.decoder-width 8 --auxiliary.warmup-frames 32 "
    "--auxiliary.warmup-steps 2 --auxiliary.steps-per-rollout 0 "
    "--log.evaluation-episodes 2 --log.evaluate-every 100 --log.checkpoint-every 100 "
    "--log.picture-every 100 --log.wandb off --threads 1 --render.workers 1"
).split()

TINY_PRETRAIN = (
    "--frames 64 --steps 6 --batch-size 4 --log-every 3 --picture-every 4 --image-size 32 --threads 1 "
    "--encoder.keypoints 4 --encoder.width 4 --encoder.decoder-width 8 --render.workers 1"
).split()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run commands in."""
    return tmp_path_factory.mktemp("workplace")


def run_in(folder: Path, main, arguments: list[str]) -> int | None:
    """Run an entry point's main in another working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return main(arguments)
    finally:
        os.chdir(before)


def run_in_this_process(monkeypatch: pytest.MonkeyPatch, programs: dict[str, Callable]) -> list[list[str]]:
    """Let studies call programs instead of starting processes.

    :param programs: by module.
    :return: a list to which each program's module and arguments are added.
    """
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        ran.append(command[2:])
        try:
            programs[command[2]](command[3:])
        except UserError as error:
            print(error)
            return subprocess.CompletedProcess(command, 2)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(plain, "subprocess", SimpleNamespace(run=run))
    serial = contextlib.nullcontext(SimpleNamespace(map=map))  # signals are listened to in the main thread only
    monkeypatch.setattr(plain, "ThreadPoolExecutor", lambda _: serial)
    return ran


@pytest.fixture(scope="session")
def tiny_run(workplace: Path) -> Path:
    """A keypoint run of seconds on reach."""
    run_in(workplace, train.main, ["--run", "tiny", *TINY])
    return workplace / "runs" / "reach-multiview" / "tiny"


@pytest.fixture(scope="session")
def tiny_pretrained(workplace: Path) -> Path:
    """A pretraining of seconds on reach."""
    run_in(workplace, pretrain.main, ["--run", "pretrained", *TINY_PRETRAIN])
    return workplace / "runs" / "reach-multiview" / "pretrained"


@pytest.fixture(scope="session")
def state_run(workplace: Path) -> Path:
    """A run on the simulator's state."""
    run_in(workplace, train.main, ["--run", "state", *TINY, "--encoder.kind", "state"])
    return workplace / "runs" / "reach-multiview" / "state"


@pytest.fixture
def opened(tiny_run: Path) -> Run:
    return Run.open(str(tiny_run))
