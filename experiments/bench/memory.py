"""What workers and replay hold in memory, at once and over time."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from agents.replay import FrameReplayBuffer, replay_bytes
from agents.worker_env import WorkerVecEnv
from envs import registry
from experiments.bench.tables import OVER_TIME
from experiments.bench.timing import race

Row = dict[str, Any]
MEGABYTE = 1e6
MARKS = 8
LARGEST_REPLAY = 2000  # transitions


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


def over_time(minutes: float, workers: int = 2, envs: int = 8, pixels: int = 64) -> list[Row]:
    """Memory of an off-policy loop without its gradient steps, marked evenly over a run; it should not grow.

    Environments step in workers, every transition goes into a replay and some are drawn from it. The replay is so small
    that it is full, and overwrites its oldest, within the first third of the run. All of it runs in a new process, so
    that what other measurements left behind does not count.

    :param minutes: of the run, about.
    :param workers: processes.
    :param envs: environments that they share.
    :param pixels: height and width of a view.
    :return: none where the system does not say what a process holds.
    """
    if not proportional_set_size(os.getpid()):
        return []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_marked_run, minutes, workers, envs, pixels).result()


def _marked_run(minutes: float, workers: int, envs: int, pixels: int) -> list[Row]:
    make = functools.partial(registry.make, "reach-multiview", height=pixels, width=pixels)
    env = WorkerVecEnv([make] * envs, workers)
    try:
        env.reset()
        actions = np.zeros((envs, *env.action_space.shape), np.float32)
        pace = race({"step": lambda: env.step(actions)}, min(1.0, 6 * minutes))["step"]
        steps = max(4 * MARKS, round(60 * minutes / pace))
        replay = FrameReplayBuffer(
            min(LARGEST_REPLAY, envs * (steps // 4)), env.observation_space, env.action_space, "cpu", envs
        )
        collect, rows, started = collector(env, replay), [], time.perf_counter()
        for mark in range(MARKS):
            while replay.added < steps * mark // (MARKS - 1):
                collect()
            rows += _weighed(env, replay, (time.perf_counter() - started) / 60)
        return rows
    finally:
        env.close()


def collector(env: WorkerVecEnv, replay: FrameReplayBuffer, batch_size: int = 64) -> Callable[[], None]:
    """What an off-policy algorithm does between its gradient steps: step, store, draw.

    :param env: the environments.
    :param replay: where transitions go.
    :param batch_size: transitions that are drawn.
    """
    observations = env.reset()
    generator = np.random.default_rng(0)
    low, high = env.action_space.low, env.action_space.high

    def act() -> None:
        nonlocal observations
        actions = generator.uniform(low, high, (env.num_envs, *low.shape)).astype(np.float32)
        following, rewards, ended, infos = env.step(actions)
        last = {key: values.copy() for key, values in following.items()}
        for row in np.flatnonzero(ended):
            for key, value in infos[row]["terminal_observation"].items():
                last[key][row] = value
        replay.add(observations, last, actions, rewards, ended, infos)
        replay.sample(batch_size)
        observations = following

    return act


def _weighed(env: WorkerVecEnv, replay: FrameReplayBuffer, minute: float) -> list[Row]:
    """What each part holds now."""
    pids = env.workers.pids
    inside, beside = proportional_set_size(os.getpid()), sum(proportional_set_size(pid) for pid in pids)
    found = {
        f"main process, with a replay of {replay.buffer_size * replay.n_envs:,} transitions": inside,
        f"{len(pids)} workers": beside,
        "all processes": inside + beside,
    }
    filled = replay.added / replay.buffer_size
    return [
        {"section": OVER_TIME, "what": what, "minute": minute, "megabytes": size / MEGABYTE, "replay_filled": filled}
        for what, size in found.items()
    ]


def proportional_set_size(pid: int) -> int:
    """Bytes of a process, what it shares with others divided by their number; 0 where the system does not say.

    :param pid: process id.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
