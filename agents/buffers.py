"""Frames for the unsupervised steps, kept as the environment gave them."""

from __future__ import annotations

import numpy as np
import torch

Frames = dict[str, np.ndarray]


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
                self.stored[key] = np.zeros((self.capacity, *values.shape[1:]), values.dtype)
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
