"""Environments in worker processes as Stable-Baselines3 sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs.links import Link, ProcessLink
from envs.worker import full_name
from envs.workers import Workers


class WorkerVecEnv(VecEnv):
    """Several environments in each of several processes (:class:`envs.workers.Workers`).

    SB3's own ``SubprocVecEnv`` starts a process for each environment and pickles every image.

    :param constructors: one per environment.
    :param workers: processes.
    :param link: kind of the connection to them; :class:`envs.remote.RayLink` has them on other machines.
    """

    def __init__(
        self, constructors: Sequence[Callable[[], gym.Env]], workers: int, link: Callable[..., Link] = ProcessLink
    ) -> None:
        self.workers = Workers(constructors, workers, link)
        super().__init__(len(constructors), self.workers.observation_space, self.workers.action_space)

    def reset(self) -> VecEnvObs:
        """Start all episodes anew."""
        observations, self.reset_infos = self.workers.reset(self._seeds, [options or None for options in self._options])
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Let all environments step."""
        self.workers.send_step(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for all of them; episodes that ended have started anew."""
        observations, rewards, ended, infos, started = self.workers.receive_step()
        for row, info in enumerate(started):
            if info is not None:
                self.reset_infos[row] = info
        return observations, rewards, ended, infos

    def save_states(self) -> list[dict[str, Any]]:
        """The states of all environments (:meth:`envs.workers.Workers.save`)."""
        return self.workers.save()

    def load_states(self, states: Sequence[dict[str, Any]]) -> tuple[VecEnvObs, list[str | None]]:
        """Put all environments into states; returns observations, and why new episodes were begun."""
        return self.workers.load(states)

    def close(self) -> None:
        """End the processes. Idempotent."""
        self.workers.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of some environments."""
        return self.workers.ask("get", self._rows(indices), attr_name)

    def has_attr(self, attr_name: str) -> bool:
        """Whether all environments have an attribute."""
        return all(self.workers.ask("has", self._rows(None), attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some environments."""
        self.workers.ask("set", self._rows(indices), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of some environments."""
        return self.workers.ask("call", self._rows(indices), method_name, method_args, method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether environments are wrapped in a class."""
        return self.workers.ask("wrapped", self._rows(indices), full_name(wrapper_class))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of each environment, for videos."""
        return self.env_method("render")

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[row] for row in self._get_indices(indices)]
