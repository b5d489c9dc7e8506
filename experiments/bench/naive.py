"""The stack that one would put together without this project: the plain baseline of whole training steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from envs import registry


class NaiveViews(gym.Wrapper):
    """The same observations, each camera rendered by Gymnasium's ``MujocoRenderer`` at its defaults.

    :param env_id: a registered task.
    :param pixels: height and width of a view.
    """

    def __init__(self, env_id: str, pixels: int) -> None:
        super().__init__(registry.make(env_id, height=pixels, width=pixels, quality="full", observe=("proprio",)))
        views = registry.make(env_id, height=pixels, width=pixels)
        self.observation_space = views.observation_space
        self.rig, self.workspace, self.background = views.rig, views.workspace, views.background
        self.pixels, self._renderer = pixels, None
        views.close()

    def reset(self, **arguments: Any) -> tuple[dict[str, np.ndarray], dict]:
        observation, info = self.env.reset(**arguments)
        return observation | {"images": self._images()}, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        observation, *rest = self.env.step(action)
        return observation | {"images": self._images()}, *rest

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        super().close()

    def _images(self) -> np.ndarray:
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        visual = self.env._synced()
        if self._renderer is None:
            self._renderer = MujocoRenderer(
                visual.model, visual.data, width=self.pixels, height=self.pixels, camera_id=int(visual.camera_ids[0])
            )
        if self._renderer.viewer is not None:
            self._renderer.viewer.make_context_current()  # others in this process may have rendered
        images = []
        for camera in visual.camera_ids:
            self._renderer.camera_id = int(camera)
            images.append(self._renderer.render("rgb_array"))
        return np.stack(images)


@dataclasses.dataclass(frozen=True)
class MakeNaive:
    """A constructor that can be sent to another process."""

    env_id: str
    pixels: int

    def __call__(self) -> gym.Env:
        return NaiveViews(self.env_id, self.pixels)


def naive_env(env_id: str, pixels: int, count: int) -> VecEnv:
    """A process of its own for every environment, as SB3 does it.

    :param env_id: a registered task.
    :param pixels: height and width of a view.
    :param count: environments.
    """
    return SubprocVecEnv([MakeNaive(env_id, pixels)] * count)
