"""Vectorised environments for training on views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from agents.finite import require_finite
from agents.worker_env import WorkerVecEnv
from envs.remote import RayLink

HELD_STEPS = 8
"""Steps of a task for which a random action is held, so that it gets somewhere."""


def held_decisions(env: VecEnv | gym.Env) -> int:
    """For how many actions in a row a random one is held; the fewer, the more often the environment repeats each.

    :param env: one environment, or several side by side.
    """
    several = isinstance(env, VecEnv)
    if not (env.has_attr if several else env.has_wrapper_attr)("action_repeat"):
        return HELD_STEPS
    repeat = env.get_attr("action_repeat")[0] if several else env.get_wrapper_attr("action_repeat")
    return max(1, HELD_STEPS // repeat)


class NormalizeReward(VecEnvWrapper):
    """Divide rewards by the running standard deviation of the discounted return, and leave observations alone.

    ``VecNormalize(norm_obs=False)`` does the same to rewards but deep-copies every observation, views included, at
    each step.

    :param venv: environments to wrap.
    :param gamma: discount of the return.
    :param clip: largest absolute reward handed on.
    """

    def __init__(self, venv: VecEnv, gamma: float = 0.99, clip: float = 10.0) -> None:
        super().__init__(venv)
        self.gamma, self.clip = gamma, clip
        self.statistics = RunningMeanStd(shape=())
        self.returns = np.zeros(self.num_envs)

    def reset(self) -> VecEnvObs:
        """Start all episodes anew."""
        self.returns[:] = 0.0
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Step; the reward that an episode really got stays in ``info["episode"]``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.returns = self.returns * self.gamma + rewards
        self.statistics.update(self.returns)
        self.returns[dones] = 0.0
        scaled = rewards / np.sqrt(self.statistics.var + 1e-8)
        return observations, np.clip(scaled, -self.clip, self.clip), dones, infos

    def state(self) -> dict[str, Any]:
        """Statistics and running returns as plain numbers, fit for JSON."""
        s = self.statistics
        return {
            "mean": float(s.mean),
            "var": float(s.var),
            "count": float(s.count),
            "returns": [float(r) for r in self.returns],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`; running returns are taken over only where the number of environments agrees."""
        s = self.statistics
        s.mean, s.var, s.count = np.float64(state["mean"]), np.float64(state["var"]), state["count"]
        if len(state["returns"]) == self.num_envs:
            self.returns = np.array(state["returns"], dtype=np.float64)


class CheckFinite(VecEnvWrapper):
    """Refuses NaN and Inf in actions, observations and rewards, and says which environment they came from."""

    def reset(self) -> VecEnvObs:
        """Start all episodes anew."""
        return require_finite("observation", self.venv.reset())

    def step_async(self, actions: np.ndarray) -> None:
        """Hand on actions that are numbers."""
        self.venv.step_async(require_finite("action", actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Step; episodes that ended have started anew."""
        observations, rewards, dones, infos = self.venv.step_wait()
        return require_finite("observation", observations), require_finite("reward", rewards), dones, infos


def make_vec_env(
    constructors: Sequence[Callable[[], gym.Env]], seed: int | None = None, workers: int = 1, remote: bool = False
) -> VecEnv:
    """Environments side by side.

    :param constructors: one per environment; with workers, they are sent to other processes.
    :param workers: processes that step and render them; 1: they step one after the other in this process and share its
        renderer.
    :param seed: environment i is reset with ``seed + i`` the first time.
    :param remote: have the workers on the nodes of the ray cluster that :func:`envs.remote.join` has joined.
    :return: episode returns, lengths and successes are in ``info["episode"]`` at an episode's end.
    """
    workers = min(workers, len(constructors))
    if remote:
        return watched_over(WorkerVecEnv(constructors, workers, RayLink), seed)
    inner = WorkerVecEnv(constructors, workers) if workers > 1 else DummyVecEnv(list(constructors))
    return watched_over(inner, seed)


def watched_over(inner: VecEnv, seed: int | None = None) -> VecEnv:
    """Environments whose episodes are recorded and whose numbers are checked.

    :param inner: the environments.
    :param seed: as in :func:`make_vec_env`.
    """
    venv = CheckFinite(VecMonitor(inner, info_keywords=("is_success",)))
    if seed is not None:
        venv.seed(seed)
    return venv
