"""Ray: this machine's cores, or a cluster that somebody has started, as a place to hand runs to."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from envs.errors import UserError
from envs.remote import ADVICE, require_answer, said_first
from experiments.sweeps import work
from experiments.sweeps.work import Outcome, Task

OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory for what is passed between processes: here a few texts."""


class Cluster:
    """A running ray, to which runs are handed; :func:`connected` makes one.

    :param ray: the module.
    :param cores: of each run.
    """

    def __init__(self, ray: Any, cores: int) -> None:
        self.ray, self.cores = ray, cores
        self.refused: dict[str, str] = {}
        self.handed: dict[Any, Task] = {}
        ray.cloudpickle.register_pickle_by_value(work)

        def attempt(task: Task) -> dict[str, Any]:
            return dataclasses.asdict(work.work(task))

        # A lost worker or node is not taken up by ray itself: it would not be counted, nor be told.
        self.attempt = ray.remote(num_cpus=cores, max_retries=0)(attempt)

    def nodes(self) -> list[dict[str, Any]]:
        """Nodes that are alive, can take a run and were not refused."""
        alive = [node for node in self.ray.nodes() if node["Alive"] and node["NodeID"] not in self.refused]
        return [node for node in alive if node["Resources"].get("CPU", 0) >= self.cores]

    def slots(self) -> int:
        """Runs that can be at work at a time."""
        return sum(int(node["Resources"]["CPU"] // self.cores) for node in self.nodes())

    def hand_out(self, task: Task) -> None:
        """Have some node make what is missing of a run, as soon as one is free."""
        selector = {"ray.io/node-id": f"!in({','.join(self.refused)})"} if self.refused else {}
        attempt = self.attempt.options(label_selector=selector) if selector else self.attempt
        self.handed[attempt.remote(task)] = task

    def wait(self, seconds: float) -> list[tuple[Task, Outcome]]:
        """What came back in the meantime.

        :param seconds: to wait at most.
        """
        if not self.handed:
            return []
        ready, _ = self.ray.wait(list(self.handed), num_returns=len(self.handed), timeout=seconds)
        return [(task, self._outcome(ref, task)) for ref in ready for task in [self.handed.pop(ref)]]

    def _outcome(self, ref: Any, task: Task) -> Outcome:
        """What an attempt says, or what ray says of it where it was lost."""
        try:
            outcome = Outcome(**self.ray.get(ref))
        except self.ray.exceptions.RayError as error:
            return Outcome(task.label, "", "", 0.0, failed=lost(error))
        if outcome.refused:
            self.refused[outcome.node] = outcome.refused
        return outcome

    def stop(self, seconds: float) -> None:
        """Ask all runs to stop where they can go on later.

        :param seconds: to wait at most.
        """
        for ref in self.handed:
            self.ray.cancel(ref, force=False)
        self.ray.wait(list(self.handed), num_returns=len(self.handed), timeout=seconds)


def lost(error: Exception) -> str:
    """Why an attempt did not come back, in one line."""
    kinds = {
        "WorkerCrashedError": "its worker was killed",
        "NodeDiedError": "its node was lost",
        "OutOfMemoryError": "killed by ray, since its node was short of memory",
    }
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in kinds), None)
    return kinds[name] if name else (lines[-1] if lines else type(error).__name__)[:300]


@contextmanager
def connected(address: str | None, jobs: int, cores: int) -> Iterator[Cluster]:
    """A cluster while the block lasts.

    :param address: of a cluster's head, or "auto" for the one that runs on this machine; None starts ray here.
    :param jobs: runs at a time where ray is started here.
    :param cores: of each run.
    :raises UserError: where ray is missing, there is no such cluster, or none of its nodes has so many cores.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # ray's own is 15; who wants that types `nice make sweep`
    try:
        import ray
    except ImportError:
        raise UserError("sweeps need ray: pip install -c constraints.txt 'kp3d_rl[cluster]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(
                address="local",  # whatever else runs here, or RAY_ADDRESS says
                num_cpus=jobs * cores, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet,
            )  # fmt: skip
        else:
            require_answer(address)
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is of the first
        where = "ray cannot be started here" if address is None else f"no ray cluster at '{address}' can be used"
        raise UserError(f"{where}: {said_first(error)}; {ADVICE}") from None
    try:
        cluster = Cluster(ray, cores)
        if not require_room(cluster):
            raise UserError("the cluster has no node with cores: on other nodes type `ray start --address=<head>:6379`")
        yield cluster
    finally:
        ray.shutdown()


def require_room(cluster: Cluster) -> bool:
    """Refuse a cluster that no run fits in.

    :return: whether there is room now; where all nodes are gone, others may come.
    :raises UserError: saying what is there.
    """
    if cluster.slots():
        return True
    if cluster.refused:
        reasons: Sequence[str] = sorted(set(cluster.refused.values()))
        raise UserError(f"no node is left that runs can be on: {'; '.join(reasons)}")
    most = max((node["Resources"].get("CPU", 0) for node in cluster.ray.nodes() if node["Alive"]), default=0)
    if not most:
        return False
    raise UserError(f"a run takes {cluster.cores} cores, the largest node has {most:g}: lower the plan's 'cores'")
