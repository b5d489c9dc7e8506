"""Frames for the unsupervised steps, and rollouts, kept as the environment gave them: on the host or on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer

Frames = dict[str, Any]
"""Arrays, or tensors where views are rendered on a device, (N, ...) by name."""


class FrameBuffer:
    """Ring of the last observations, one instant of all views each.

    :param capacity: frames to keep.
    :param keys: which entries of the observation to keep (``images`` and, where cameras move, ``camera_poses``).
    """

    def __init__(self, capacity: int, keys: tuple[str, ...] = ("images",)) -> None:
        if capacity < 1:
            raise ValueError(f"a frame buffer keeps at least 1 frame, got {capacity}")
        self.capacity, self.keys = capacity, keys
        self.stored: Frames = {}
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, observations: Frames) -> None:
        """Copy a batch of observations into the ring.

        :param observations: arrays (N, ...), one row per environment.
        """
        count = len(observations[self.keys[0]])
        places = (self.added + np.arange(count)) % self.capacity
        for key in self.keys:
            values = observations[key]
            if key not in self.stored:
                shape = (self.capacity, *values.shape[1:])
                on_device = isinstance(values, torch.Tensor)
                self.stored[key] = values.new_zeros(shape) if on_device else np.zeros(shape, values.dtype)
            self.stored[key][places] = values
        self.added += count

    def sample(self, batch_size: int, generator: np.random.Generator) -> Frames:
        """Draw frames with replacement.

        :param batch_size: B.
        :param generator: source of the draw.
        :return: copies, (B, ...) each.
        """
        rows = generator.integers(len(self), size=batch_size)
        return {key: self.stored[key][rows] for key in self.keys}

    def last(self, count: int) -> Frames:
        """The newest ``count`` frames, or all there are; copies."""
        rows = (self.added - 1 - np.arange(min(count, len(self)))) % self.capacity
        return {key: self.stored[key][rows] for key in self.keys}


def to_tensors(frames: Frames, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Arrays to tensors on a device, types unchanged.

    :param frames: arrays by name, any shapes.
    :param device: where the tensors go.
    """
    return {key: torch.as_tensor(value, device=device) for key, value in frames.items()}


class DeviceRolloutBuffer(DictRolloutBuffer):
    """SB3's rollout buffer for observations of which some are tensors on a device: those stay there.

    Everything else, and every number that is handed out, is as in SB3's own.
    """

    def reset(self) -> None:
        """Forget the rollout; the tensors' memory is kept for the next one."""
        super().reset()
        self._tensors: dict[str, torch.Tensor] = getattr(self, "_tensors", {})
        self._show_tensors()

    def add(self, obs: Frames, *rest: Any) -> None:
        """Add a step of all environments.

        :param obs: (n_envs, ...) arrays or tensors by name.
        :param rest: as in SB3's buffer.
        """
        for key, values in obs.items():
            if isinstance(values, torch.Tensor):
                if key not in self._tensors:
                    self._tensors[key] = values.new_zeros((self.buffer_size, self.n_envs, *values.shape[1:]))
                self._tensors[key][self.pos] = values
        everything = self.observations
        self.observations = {key: stored for key, stored in everything.items() if key not in self._tensors}
        super().add(obs, *rest)
        self.observations = everything
        self._show_tensors()

    def to_torch(self, array: Any, copy: bool = True) -> torch.Tensor:
        """Hand tensors on as they are."""
        return array if isinstance(array, torch.Tensor) else super().to_torch(array, copy)

    def _show_tensors(self) -> None:
        """Have SB3's own methods find the tensors; they flatten what they find, so the whole ones are kept apart."""
        self.observations |= self._tensors
