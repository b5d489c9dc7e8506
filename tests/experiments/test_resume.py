"""Runs that go on after being stopped or killed, as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from envs.errors import UserError
from experiments import resume
from experiments.provenance import circumstances
from experiments.runs import Checkpoint, Run
from experiments.soak.kills import TRAININGS, Alone, differences, kill_again_and_again, logged, train
from experiments.train import main as train_main
from tests.experiments.conftest import TINY, run_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", params=["ppo", "sac"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """A training that nobody disturbed, of each algorithm."""
    return train(tmp_path_factory.mktemp("alone"), request.param)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_where_it_would_have(alone: Alone, tmp_path: Path, seed: int) -> None:
    outcome = kill_again_and_again(tmp_path, "killed", alone, 5, seed)
    assert outcome.lost == 0 and outcome.resumes >= 3  # the others came before the run was there
    for run in outcome.finished:
        assert differences(run, alone.run) == []


SHORT = [*TRAININGS["ppo"], "--total-steps", "448"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A training or resumption in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **output)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert path.exists(), process.communicate()[0]


def test_a_signal_to_the_whole_group_stops_in_good_order_and_nothing_is_lost(tmp_path: Path) -> None:
    """As schedulers send it: to the training and to the processes of its environments at once."""
    workers = [*SHORT, "--render.workers", "2"]
    run = tmp_path / "runs" / "reach-multiview" / "stopped"
    process = start(tmp_path, "experiments.train", "--run", "stopped", *workers)
    wait_for(run / "checkpoints" / "000000128", process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and "worker" not in output, output
    assert f"next: make train RESUME={run.relative_to(tmp_path)}" in output
    assert run_in(tmp_path, resume.main, ["--run", str(run)]) == 0
    run_in(tmp_path, train_main, ["--run", "alone", *workers])
    assert differences(run, run.with_name("alone")) == []


def test_a_pretrained_run_goes_on_from_its_very_beginning(tiny_run: Path, tmp_path: Path) -> None:
    """What the pretraining had behind it, such as the rise of the multi-view weight, is behind this run, too."""
    options = [*TINY, "--pretrained", str(tiny_run), "--log.checkpoints-kept", "0"]
    run = tmp_path / "runs" / "reach-multiview" / "killed"
    process = start(tmp_path, "experiments.train", "--run", "killed", *options)
    wait_for(run / "checkpoints" / "latest", process)
    process.kill()
    process.communicate()
    assert Run.open(str(run)).load().step == 0
    assert run_in(tmp_path, resume.main, ["--run", str(run)]) == 0
    run_in(tmp_path, train_main, ["--run", "alone", *options])
    assert differences(run, run.with_name("alone")) == []


def test_going_on_from_an_older_checkpoint_makes_it_the_newest(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """The newest is damaged, the way out is the one before it; a kill right after that must not lead back to it."""
    runs = tmp_path / "runs" / "reach-multiview"
    process = start(tmp_path, "experiments.train", "--run", "killed", *SHORT)
    wait_for(runs / "killed" / "checkpoints" / "000000256" / "SHA256SUMS", process)
    process.kill()
    process.communicate()
    run = Run.open(str(runs / "killed"))
    *_, older, newest = run.steps()
    policy = run.checkpoints.path(newest) / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:-8])
    (run.path / "checkpoints" / "latest").write_text(f"{newest:09d}\n")
    with pytest.raises(UserError, match=f"policy.safetensors is damaged.*others stand at step .*{older}"):
        resume.main(["--run", str(run.path)])
    process = start(tmp_path, "experiments.resume", "--run", str(run.path), "--checkpoint", str(older))
    deadline = time.monotonic() + 300
    while run.checkpoints.latest() == newest and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()  # before it has written any of its own
    process.communicate()
    assert run_in(tmp_path, resume.main, ["--run", str(run.path)]) == 0
    run_in(tmp_path, train_main, ["--run", "alone", *SHORT])
    assert differences(run.path, runs / "alone") == []


def test_a_run_that_was_killed_before_it_wrote_anything_begins_anew(
    opened: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = Run.create(tmp_path / "young", opened.config, opened.scene())
    assert resume.main(["--run", str(run.path)]) == 0
    assert "has no checkpoint yet: it begins anew" in capsys.readouterr().out
    assert differences(run.path, opened.path) == []
    pretrained = dataclasses.replace(opened.config, pretrained="somewhere")
    run = Run.create(tmp_path / "pretrained", pretrained, opened.scene())
    with pytest.raises(UserError, match="was killed before it took over the keypoints of its pretraining"):
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
    process = start(tmp_path, "experiments.train", "--run", "bereft", *SHORT, "--render.workers", "2")
    wait_for(run / "checkpoints" / "000000128", process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    wait_for(run / "checkpoints" / "000000320", process)
    process.kill()
    process.communicate()
    assert run_in(tmp_path, resume.main, ["--run", str(run)]) == 0
    deaths = [int(row["time/worker_deaths"]) for row in logged(run) if row["time/worker_deaths"]]
    assert deaths == sorted(deaths) and deaths[0] == 0 and deaths[-1] == 1


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_finished_run_says_so(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.name != "lock"}
    assert resume.main(["--run", str(tiny_run)]) == 0
    assert "is finished: 160 steps are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.name != "lock"} == before
