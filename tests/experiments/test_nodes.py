"""Trainings whose environments are simulated on the nodes of a cluster."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agents.worker_env import WorkerVecEnv
from envs import remote, workers
from envs.errors import UserError
from envs.remote import RayLink
from experiments import resume, train
from experiments.soak.kills import differing_ends
from experiments.train import taken_nodes
from tests.counting import CountingEnv
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


def test_the_workers_of_a_lost_node_are_taken_up_by_the_one_that_is_left(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers on each of two nodes: more die together than may one by one, and no core is left for them."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(workers, "MOST_DEATHS", 1)
    monkeypatch.setattr(workers, "TOGETHER", 600.0)
    ray.shutdown()  # the other tests' cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        env = WorkerVecEnv([functools.partial(CountingEnv, length=100_000)] * 4, 4, RayLink)
        env.reset()
        actions = np.zeros((4, 1), np.float32)
        env.step(actions)
        on = [link.node for link in env.workers._workers]
        assert len(set(on)) == 2 and min(map(on.count, on)) == 2
        cluster.remove_node(second, allow_graceful=False)
        ends = np.zeros(4, bool)
        until = time.monotonic() + 120  # its processes take a moment to notice
        while ends.sum() < 2 and time.monotonic() < until:
            ends |= env.step(actions)[2]
            time.sleep(0.05)
        assert ends.sum() == 2 and env.workers.deaths == 1, "the two of that node were truncated"
        assert len({link.node for link in env.workers._workers}) == 1
        env.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert capsys.readouterr().err.count("its process or its node was lost") >= 2
