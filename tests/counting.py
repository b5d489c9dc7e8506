"""An environment that counts, for what has to do with processes and not with cameras; it imports no torch."""

from __future__ import annotations

import sys
import threading

import gymnasium as gym
import numpy as np

from envs.errors import UserError


class CountingEnv(gym.Env):
    """Shows how many steps it has made: in a tiny image, in ``proprio`` and as the reward.

    :param length: steps of an episode; the last one ends in success and truncation.
    :param fails: "refuse" and "crash" in ``make``, "step" in every step, "once" in the first, "end" with a pipe's error
        and "unsendable" with an info that cannot be pickled: when and how something goes wrong.
    :param size: of the images.
    """

    observation_space = gym.spaces.Dict(
        images=gym.spaces.Box(0, 255, (2, 3, 3, 3), np.uint8), proprio=gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    )
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 5, fails: str = "", size: int = 3) -> None:
        if fails == "refuse":
            raise UserError("this environment cannot be made")
        if fails == "crash":
            raise ZeroDivisionError("a bug")
        self.length, self.fails, self.steps, self.episode_seed = length, fails, 0, -1.0
        if size != 3:
            images = gym.spaces.Box(0, 255, (2, size, size, 3), np.uint8)
            self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "images": images})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.steps, self.episode_seed = 0, float(self.np_random.integers(1000))
        return self._observe(), {"seed": seed, "options": options}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        if self.fails in ("step", "once"):
            self.fails = "" if self.fails == "once" else self.fails
            raise ZeroDivisionError("a bug in step")
        if self.fails == "end":
            raise EOFError("the environment's own file ended")
        self.steps += 1
        over = self.steps >= self.length
        info = {"is_success": over} | ({"lock": threading.Lock()} if self.fails == "unsendable" else {})
        return self._observe(), float(self.steps + action[0]), False, over, info

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.steps, np.uint8)

    def has_torch(self, *, also: str = "sys") -> tuple[bool, bool]:
        """Whether torch, and another module, are imported in this process."""
        return "torch" in sys.modules, also in sys.modules

    def _observe(self) -> dict[str, np.ndarray]:
        images = np.full((2, 3, 3, 3), self.steps, np.uint8)
        return {"images": images, "proprio": np.array([self.steps, self.episode_seed], np.float32)}
