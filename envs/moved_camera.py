"""A wrapper that moves one camera before each episode: a tripod that was knocked, an arm that was mounted anew."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import UserError


class MovedCamera(gym.Wrapper):
    """Move and turn one camera before each episode, by the episode's seed; physics does not know.

    Direction and axis are uniform on the sphere, distance and angle always the same. ``rig`` and ``camera_poses`` tell
    the truth of each episode; the observation does so only where it did before.
    """

    def __init__(self, env: gym.Env, view: int, metres: float = 0.1, degrees: float = 10.0) -> None:
        """Nothing moves before the first reset.

        :param env: a ``MultiViewObservation``, wrapped or not.
        :param view: index of the camera.
        :param metres: by which it moves.
        :param degrees: by which it turns.
        :raises UserError: if there is no such camera.
        """
        super().__init__(env)
        names = env.get_wrapper_attr("rig").names
        if not 0 <= view < len(names):
            raise UserError(f"there is no camera {view}: the cameras {', '.join(names)} count from 0")
        self._view, self._metres, self._degrees = view, metres, degrees
        self._rng: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Move the camera and start an episode; the same seed moves it alike."""
        if seed is not None or self._rng is None:
            self._rng = np.random.default_rng(seed)
        direction, axis = (vector / np.linalg.norm(vector) for vector in self._rng.normal(size=(2, 3)))
        self._move(self._view, self._metres * direction, np.radians(self._degrees) * axis)
        return self.env.reset(seed=seed, options=options)

    def restore(self) -> None:
        """Put the camera back where it was."""
        self._move(self._view, np.zeros(3), np.zeros(3))

    def _move(self, view: int, offset: np.ndarray, turn: np.ndarray) -> None:
        self.env.get_wrapper_attr("move_camera")(view, offset, turn)
