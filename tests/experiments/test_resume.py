"""Runs that go on after being stopped or killed, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import resume
from experiments.soak.kills import TRAININGS, Alone, differences, kill_again_and_again, train


@pytest.fixture(scope="session", params=list(TRAININGS))
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """A training that nobody disturbed, of each algorithm."""
    return train(tmp_path_factory.mktemp("alone"), request.param)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_where_it_would_have(alone: Alone, tmp_path: Path, seed: int) -> None:
    outcome = kill_again_and_again(tmp_path, "killed", alone, 5, seed)
    assert outcome.kills == 5
    for run in outcome.finished:
        assert differences(run, alone.run) == []


def test_a_finished_run_says_so(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.name != "lock"}
    assert resume.main(["--run", str(tiny_run)]) == 0
    assert "is finished: 160 steps are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.name != "lock"} == before
