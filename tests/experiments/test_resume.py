"""Runs that go on after being stopped or killed, as if nothing had happened."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.worker_env import WorkerVecEnv
from envs.errors import UserError
from experiments import resume
from experiments.provenance import circumstances
from experiments.runs import Checkpoint, Checkpoints, Run
from experiments.soak import recorder
from experiments.soak.kills import (
    TRAININGS,
    Alone,
    differences,
    differing_ends,
    kill_again_and_again,
    logged,
    train,
)
from experiments.train import main as train_main
from tests.experiments.conftest import TINY, run_in
from tests.tasks import ALL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", params=["ppo", "sac"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """A training that nobody disturbed, of each algorithm."""
    return train(tmp_path_factory.mktemp("alone"), request.param)


@pytest.mark.parametrize("seed", [0, 1] if ALL else [0])  # `make soak` kills by the hundred
def test_killed_at_random_moments_it_ends_where_it_would_have(alone: Alone, tmp_path: Path, seed: int) -> None:
    kills = 5 if ALL else 3
    outcome = kill_again_and_again(tmp_path, "killed", alone, kills, seed)
    assert outcome.lost == 0 and outcome.states > 0
    assert outcome.resumes >= kills - 2  # at most two come before the run is there, or to a process that still imports
    for run in outcome.finished:
        assert differences(run, alone.run) == []


SHORT = [*TRAININGS["ppo"], "--total-steps", "448"]


def plant(method: str, step: int, action: Callable[[], None]) -> None:
    """In a process that trains: act once a method of the checkpoints has returned and this step's is the newest."""
    true_method = getattr(Checkpoints, method)

    def planted(checkpoints: Checkpoints, *args) -> None:
        true_method(checkpoints, *args)
        if checkpoints.latest() == step:
            action()

    setattr(Checkpoints, method, planted)


def plant_signal(step: int) -> None:
    """In a process that trains: a SIGTERM to it and its workers while these are at work on a step."""
    true_wait, waits = WorkerVecEnv.step_wait, []

    def step_wait(env: WorkerVecEnv) -> tuple:
        waits.append(env)
        if len(waits) * env.num_envs == step:
            os.killpg(0, signal.SIGTERM)
        return true_wait(env)

    WorkerVecEnv.step_wait = step_wait


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_a_worker() -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def planted(folder: Path, plants: str, *arguments: str) -> tuple[int, str]:
    """A recorded training or resumption in a process group of its own, in which something is planted.

    Where it happens is told in steps, not in time: it is the same however busy the machine is.

    :param plants: calls of functions of this module.
    :param arguments: "train" or "resume", and theirs.
    :return: exit code and what it said.
    """
    code = f"from tests.experiments.test_resume import *; {plants}; recorder.run_main(recorder.main)"
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, timeout=300, start_new_session=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process.returncode, process.stdout


def killed_at(step: int, folder: Path, *arguments: str) -> None:
    """A training that is killed when the checkpoint of a step stands."""
    code, output = planted(folder, f"plant('prune', {step}, die)", "train", *arguments)
    assert code == -signal.SIGKILL, output


def recorded(folder: Path, main: Callable, *arguments: str) -> None:
    """A training or resumption in this process that comes to its end."""
    with recorder.recording():
        assert run_in(folder, main, list(arguments)) == 0


def test_a_signal_to_the_whole_group_stops_in_good_order_and_nothing_is_lost(tmp_path: Path) -> None:
    """As schedulers send it: to the training and to the processes of its environments at once."""
    workers = [*SHORT, "--render.workers", "2"]
    run = tmp_path / "runs" / "reach-multiview" / "stopped"
    code, output = planted(tmp_path, "plant_signal(160)", "train", "--run", "stopped", *workers)
    assert code == 128 + signal.SIGTERM and "worker" not in output, output
    assert f"next: make train RESUME={run.relative_to(tmp_path)}" in output
    assert Run.open(str(run)).load().step == 192  # where the rollout ends in whose middle the signal came
    recorded(tmp_path, resume.main, "--run", str(run))
    recorded(tmp_path, train_main, "--run", "alone", *workers)
    assert differences(run, run.with_name("alone")) == []


def test_a_pretrained_run_goes_on_from_its_very_beginning(tiny_run: Path, tmp_path: Path) -> None:
    """What the pretraining had behind it, such as the rise of the multi-view weight, is behind this run, too."""
    options = [*TINY, "--pretrained", str(tiny_run), "--log.checkpoints-kept", "0"]
    run = tmp_path / "runs" / "reach-multiview" / "killed"
    killed_at(0, tmp_path, "--run", "killed", *options)
    assert Run.open(str(run)).load().step == 0
    recorded(tmp_path, resume.main, "--run", str(run))
    recorded(tmp_path, train_main, "--run", "alone", *options)
    assert differences(run, run.with_name("alone")) == []


def test_going_on_from_an_older_checkpoint_makes_it_the_newest(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """The newest is damaged, the way out is the one before it; a kill right after that must not lead back to it."""
    runs = tmp_path / "runs" / "reach-multiview"
    killed_at(256, tmp_path, "--run", "killed", *SHORT)
    run = Run.open(str(runs / "killed"))
    *_, older, newest = run.steps()
    policy = run.checkpoints.path(newest) / "policy.safetensors"
    half = policy.read_bytes()[:-8]
    policy.unlink()  # the record has the same file
    policy.write_bytes(half)
    with pytest.raises(UserError, match=f"policy.safetensors is damaged.*others stand at step .*{older}"):
        resume.main(["--run", str(run.path)])
    again = ["--run", str(run.path), "--checkpoint", str(older)]
    code, output = planted(tmp_path, f"plant('go_back', {older}, die)", "resume", *again)
    assert code == -signal.SIGKILL, output  # before it has written any of its own
    assert run.checkpoints.latest() == older and newest in run.steps()
    recorded(tmp_path, resume.main, "--run", str(run.path))
    recorded(tmp_path, train_main, "--run", "alone", *SHORT)
    assert differences(run.path, runs / "alone") == []


def test_a_run_that_was_killed_before_it_wrote_anything_begins_anew(
    opened: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = Run.create(tmp_path / "young", opened.config, opened.scene())
    assert resume.main(["--run", str(run.path)]) == 0
    assert "has no checkpoint yet: it begins anew" in capsys.readouterr().out
    assert differing_ends(run.path, opened.path) == []
    pretrained = dataclasses.replace(opened.config, pretrained="somewhere")
    run = Run.create(tmp_path / "pretrained", pretrained, opened.scene())
    with pytest.raises(UserError, match="was killed before it took over the keypoints of another run"):
        resume.main(["--run", str(run.path)])


def test_threads_and_renderer_are_those_that_the_run_began_with(
    opened: Run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_was(**circumstances) -> tuple[int, str]:
        checkpoint = Checkpoint(1, {}, {}, {"circumstances": circumstances})
        run = resume.as_it_was(opened, checkpoint)
        resume.report_circumstances(run, checkpoint)
        return torch.get_num_threads(), run.config.render.backend

    before = torch.get_num_threads()
    try:
        assert as_it_was(threads=2, renderer="warp") == (2, "warp")
        assert as_it_was(threads=-1, renderer="paint") == (1, "auto")
        monkeypatch.setattr(resume, "chosen_backend", lambda name: "warp")  # no OpenGL here
        assert as_it_was(threads=1, renderer="gl") == (1, "auto")
    finally:
        torch.set_num_threads(before)
    capsys.readouterr()
    now = circumstances(opened.config)
    assert as_it_was(**now)[0] == before and "not bit for bit" not in capsys.readouterr().err
    as_it_was(**now | {"torch": "0.1", "machine": "\x1b[2Jabacus"})
    said = capsys.readouterr().err
    assert "not bit for bit: machine ?[2Jabacus -> " in said and "torch 0.1 -> " in said and said.count("\n") == 1


def test_a_worker_that_died_is_remembered(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "reach-multiview" / "bereft"
    plants = "plant('prune', 128, kill_a_worker); plant('prune', 320, die)"
    code, output = planted(tmp_path, plants, "train", "--run", "bereft", *SHORT, "--render.workers", "2")
    assert code == -signal.SIGKILL and Run.open(str(run)).load().step == 320, output
    assert run_in(tmp_path, resume.main, ["--run", str(run)]) == 0
    deaths = [int(row["time/worker_deaths"]) for row in logged(run) if row["time/worker_deaths"]]
    assert deaths == sorted(deaths) and deaths[0] == 0 and deaths[-1] == 1


def test_a_finished_run_says_so(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.name != "lock"}
    assert resume.main(["--run", str(tiny_run)]) == 0
    assert "is finished: 160 steps are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.name != "lock"} == before


# -- what cannot be gone on with ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed behind several checkpoints, all of which are kept."""
    folder = tmp_path_factory.mktemp("stopped")
    killed_at(320, folder, "--run", "killed", *SHORT)
    return folder / "runs" / "reach-multiview" / "killed"


@pytest.fixture
def killed(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(stopped, tmp_path / "killed"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_without_its_checkpoints_a_run_keeps_its_logs(killed: Path) -> None:
    shutil.rmtree(killed / "checkpoints")
    before = contents(killed)
    with pytest.raises(UserError, match="has logged numbers but no checkpoint: without one nothing can go on"):
        resume.main(["--run", str(killed)])
    assert contents(killed) == before and any(path.name == "metrics.csv" and data for path, data in before.items())


@pytest.mark.parametrize("damaged", ["segments", "metrics.csv", "state"])
def test_who_goes_back_to_what_cannot_be_gone_on_from_loses_nothing(killed: Path, damaged: str) -> None:
    run = Run.open(str(killed))
    newest, older = run.checkpoints.latest(), run.steps()[2]
    assert older < newest
    if damaged == "segments":
        (segment, *_) = sorted((killed / "segments").iterdir())
        segment.write_bytes(segment.read_bytes()[:-1])
    elif damaged == "metrics.csv":
        (killed / "metrics.csv").write_text("a,b\n")
    else:
        (run.checkpoints.path(older) / "training.safetensors").write_bytes(b"")
    before = contents(killed)
    with pytest.raises(UserError) as error:
        resume.main(["--run", str(killed), "--checkpoint", str(older)])
    assert "\n" not in str(error.value) and contents(killed) == before and run.checkpoints.latest() == newest


def test_what_a_run_is_cannot_be_changed_and_the_message_says_so(killed: Path) -> None:
    config = killed / "config.yaml"
    config.write_text(config.read_text() + "\n")
    message = "config.yaml was changed since checkpoint .* was written: what a run is cannot be changed; put the file"
    with pytest.raises(UserError, match=message) as error:
        resume.main(["--run", str(killed)])
    assert "others stand" not in str(error.value) and "damaged" not in str(error.value)


@pytest.mark.parametrize("name", ["a" * 300, "runs/" + "b" * 300, "x/" * 3000])
def test_names_that_no_folder_can_have_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="no run (at|folder at) ") as error:
        resume.main(["--run", name])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(UserError, match="at most 200 are possible|plain folder name|at most 4,096 printable"):
        train_main(["--env", "reach-multiview", "--run", name])


def test_a_finished_run_is_finished_at_all_of_its_checkpoints(killed: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_in(killed.parent, resume.main, ["--run", str(killed)]) == 0
    steps = Run.open(str(killed)).steps()
    assert len(steps) > 3 and not list((killed / "segments").iterdir())
    before = contents(killed)
    capsys.readouterr()
    for step in (steps[0], steps[2], steps[-1]):
        assert resume.main(["--run", str(killed), "--checkpoint", str(step)]) == 0
        assert f"is finished: {steps[-1]} steps are done" in capsys.readouterr().out
    assert contents(killed) == before


def test_a_full_disk_at_the_very_end_is_one_line(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(killed / "checkpoints" / "some"))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "give_up_frames", full)
        with pytest.raises(UserError, match="some failed: No space left on device; last good checkpoint: .*000000448"):
            run_in(killed.parent, resume.main, ["--run", str(killed)])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "give_up_frames", full)
        with pytest.raises(UserError, match="No space left on device; .*when there is room again: make train RESUME="):
            resume.main(["--run", str(killed)])
    assert resume.main(["--run", str(killed)]) == 0 and not list((killed / "segments").iterdir())


def test_other_code_is_told_of(opened: Run, capsys: pytest.CaptureFixture) -> None:
    checkpoint = Checkpoint(1, {}, {}, {"circumstances": circumstances(opened.config) | {"code": "0123456"}})
    resume.report_circumstances(opened, checkpoint)
    assert "maybe not bit for bit: code 0123456 -> " in capsys.readouterr().err
    for value in (np.zeros(0), np.zeros((300, 2)), {"a": 1}, None, 1.5):
        checkpoint.state["circumstances"]["renderer"] = value
        for look in (resume.as_it_was, resume.report_circumstances):
            with pytest.raises(UserError, match="checkpoint 1 is damaged: 'circumstances' are no texts and numbers"):
                look(opened, checkpoint)


def test_what_to_type_names_the_module_of_an_environment(opened: Run) -> None:
    assert opened.command("resume") == f"make train RESUME={opened.path}"
    foreign = dataclasses.replace(opened, config=dataclasses.replace(opened.config, env="some_module:Task-v0"))
    assert foreign.command("resume") == f"make train RESUME={opened.path} ENV=some_module:Task-v0"
    assert foreign.command("evaluate") == f"make evaluate RUN={opened.path} ENV=some_module:Task-v0"
