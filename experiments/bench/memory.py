"""What workers and replay hold in memory."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from agents.replay import replay_bytes
from agents.workers import WorkerVecEnv
from envs import registry

Row = dict[str, Any]
MEGABYTE = 1e6


def worker_memory(workers: int = 8, pixels: int = 128, steps: int = 20) -> Row:
    """Proportional set size of worker processes that have rendered for a while.

    :param workers: processes, with one environment each.
    :param pixels: height and width of a view.
    :param steps: to make first.
    """
    make = functools.partial(registry.make, "reach-multiview", height=pixels, width=pixels)
    env = WorkerVecEnv([make] * workers, workers)
    try:
        env.reset()
        for _ in range(steps):
            env.step(np.zeros((workers, *env.action_space.shape), np.float32))
        total = sum(proportional_set_size(pid) for pid in env.workers.pids)
    finally:
        env.close()
    return {"what": f"{workers} workers, 3 views of {pixels} px", "megabytes": total / MEGABYTE}


def replay_memory(transitions: int = 100_000, pixels: int = 64, envs: int = 8) -> Row:
    """Size of a replay of ``reach-multiview``, as it is said before it is allocated.

    :param transitions: kept.
    :param pixels: height and width of a view.
    :param envs: side by side.
    """
    env = registry.make("reach-multiview", height=pixels, width=pixels)
    spaces: tuple[gym.Space, gym.Space] = (env.observation_space, env.action_space)
    env.close()
    size = replay_bytes(*spaces, transitions, envs)
    return {"what": f"replay of {transitions:,} transitions, 3 views of {pixels} px", "megabytes": size / MEGABYTE}


def proportional_set_size(pid: int) -> int:
    """Bytes of a process, what it shares with others divided by their number; 0 where the system does not say.

    :param pid: process id.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
