"""Trainings whose environments are simulated on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from envs import remote
from envs.errors import UserError
from experiments import resume, train
from experiments.soak.kills import differing_ends
from experiments.train import taken_nodes
from tests.experiments.conftest import TINY, run_in
from tests.experiments.test_resume import SHORT, killed_at

TWO = [*TINY[:-1], "2"]
"""Options of a training in two workers."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a ray with two nodes of a core each, which are processes of this machine."""
    from experiments.bench.nodes import local_nodes

    with local_nodes(2, 1) as found:
        yield found


def test_a_training_through_nodes_is_the_local_one_bit_for_bit(tmp_path: Path, address: str) -> None:
    runs = {}
    for name, more in {"here": [], "there": ["--nodes", address]}.items():
        (tmp_path / name).mkdir()
        run_in(tmp_path / name, train.main, ["--run", "a", *TWO, *more])
        runs[name] = tmp_path / name / "runs" / "reach-multiview" / "a"
    assert differing_ends(runs["here"], runs["there"]) == []
    assert (runs["here"] / "config.yaml").read_bytes() == (runs["there"] / "config.yaml").read_bytes()


def test_a_run_goes_on_elsewhere_as_if_nothing_had_happened(tmp_path: Path, address: str) -> None:
    """Killed here, gone on with on nodes."""
    run = tmp_path / "runs" / "reach-multiview" / "killed"
    killed_at(192, tmp_path, "--run", "killed", *SHORT, "--render.workers", "2")
    run_in(tmp_path, resume.main, ["--run", str(run), "--nodes", address])
    run_in(tmp_path, train.main, ["--run", "alone", *SHORT, "--render.workers", "2"])
    assert differing_ends(run, run.with_name("alone")) == []


def test_what_cannot_be_is_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="render workers 3: the cluster at .* has 2 cores, one for each of them"):
        run_in(tmp_path, train.main, ["--run", "a", *TINY[:-1], "3", "--nodes", address])
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="--nodes needs a value"):
        taken_nodes(["--nodes"])
    assert taken_nodes(["--seed", "1", "--nodes=auto"]) == (["--seed", "1"], "auto")
    with pytest.raises(ConnectionRefusedError):
        remote.require_answer("127.0.0.1:1")


def test_other_versions_are_refused() -> None:
    here = remote.versions()
    remote.require_same(here)
    with pytest.raises(UserError, match=f"has mujoco {here['mujoco']}, here it is 0.1"):
        remote.require_same({**here, "mujoco": "0.1"})
