"""Environment steps through remote workers: two ray nodes against one, of as many cores each."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agents.vec_env import make_vec_env
from envs import registry
from experiments.training.building import cores

ENVS = 8


def scaling(seconds: float, env_id: str = "reach-multiview", pixels: int = 64, rounds: int = 2) -> list[dict[str, Any]]:
    """Steps per second of eight environments on one node and on two; both are ray processes of this machine.

    The two are timed in turns, so that what else the machine does hits both.

    :param seconds: about how long each is timed.
    :param env_id: registered task.
    :param pixels: height and width of its views.
    :param rounds: turns.
    """
    each = max(1, cores() // 2)
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for nodes in found:
            with local_nodes(nodes, each), contextlib.closing(environments(env_id, pixels, nodes * each)) as env:
                found[nodes].append(steps_per_second(env, seconds / rounds))
    speeds = {nodes: float(np.mean(measured)) for nodes, measured in found.items()}
    return [
        {
            "what": f"{nodes} node{'s' if nodes > 1 else ''} of {each} core{'s' if each > 1 else ''}",
            "scene": f"{env_id}, 3 views of {pixels} px",
            "steps_per_second": speed,
            "times_first": speed / speeds[1],
        }
        for nodes, speed in speeds.items()
    ]


def environments(env_id: str, pixels: int, workers: int) -> VecEnv:
    """Environments in workers on the nodes that this process has joined."""
    make = functools.partial(registry.make, env_id, height=pixels, width=pixels)
    return make_vec_env([make] * ENVS, seed=0, workers=workers, remote=True)


@contextlib.contextmanager
def local_nodes(count: int, each: int) -> Iterator[str]:
    """Ray nodes on this machine, which this process has joined.

    :param count: how many.
    :param each: cores that each of them says it has.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": each, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=each)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def steps_per_second(env: VecEnv, seconds: float) -> float:
    """Steps of all environments together in a second.

    :param env: whose episodes begin.
    :param seconds: how long it is timed.
    """
    generator = np.random.default_rng(0)
    env.reset()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or not done:
        env.step(generator.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32))
        done += env.num_envs
    return done / (time.perf_counter() - started)
