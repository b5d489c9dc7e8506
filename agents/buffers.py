"""Frames for the unsupervised steps, and rollouts, kept as the environment gave them: on the host or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer

Frames = dict[str, Any]
"""Arrays, or tensors where views are rendered on a device, (N, ...) by name."""


@dataclass(frozen=True)
class Stream:
    """Items that came one after the other, of which rings hold the last: item n is in row n % capacity.

    What was written down of a stream stays true while more is added, so that each item has to be written once.

    :param name: of the stream: small letters, digits and dashes.
    :param count: items that ever came.
    :param rings: (capacity, ...) arrays or tensors by name; none before the first item came.
    """

    name: str
    count: int
    rings: Frames

    @property
    def capacity(self) -> int:
        """Items that are held at most."""
        return len(next(iter(self.rings.values()))) if self.rings else 0

    @property
    def first(self) -> int:
        """Number of the oldest item that is held."""
        return max(0, self.count - self.capacity)

    @property
    def item_bytes(self) -> int:
        """Of one item."""
        return sum(ring[:1].nbytes for ring in self.rings.values())

    def kind(self, key: str) -> torch.dtype:
        """Type of a ring's numbers."""
        ring = self.rings[key]
        return ring.dtype if isinstance(ring, torch.Tensor) else torch.from_numpy(ring[:0]).dtype

    def read(self, first: int, end: int) -> dict[str, torch.Tensor]:
        """Items as tensors on the host, which may share the rings' memory; they must not cross a ring's end."""
        start = first % self.capacity
        return {key: torch.as_tensor(ring[start : start + end - first]).cpu() for key, ring in self.rings.items()}

    def write(self, first: int, items: Mapping[str, torch.Tensor]) -> None:
        """Put items back into their places."""
        for key, values in items.items():
            rows = (first + np.arange(len(values))) % self.capacity
            ring = self.rings[key]
            ring[rows] = values.to(ring.device) if isinstance(ring, torch.Tensor) else values.numpy()


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
        if not self.stored:
            self._allocate(observations)
        for key in self.keys:
            self.stored[key][places] = observations[key]
        self.added += count

    def _allocate(self, observations: Frames) -> None:
        """Make room for frames like these, where these are."""
        for key in self.keys:
            values = observations[key]
            shape = (self.capacity, *values.shape[1:])
            on_device = isinstance(values, torch.Tensor)
            self.stored[key] = values.new_zeros(shape) if on_device else np.zeros(shape, values.dtype)

    def sample(self, batch_size: int, generator: np.random.Generator) -> Frames:
        """Draw frames with replacement.

        :param batch_size: B.
        :param generator: source of the draw.
        :return: copies, (B, ...) each.
        """
        rows = generator.integers(len(self), size=batch_size)
        return {key: self.stored[key][rows] for key in self.keys}

    def streams(self) -> list[Stream]:
        """The frames, to be written down."""
        return [Stream("frames", self.added, self.stored)]

    def expect(self, added: int, observations: Frames) -> list[Stream]:
        """Stand where ``added`` frames have come; who asks must put them into the stream that is returned.

        :param observations: frames of the same kind, (N, ...).
        """
        self.stored.clear()
        self._allocate(observations)
        self.added = added
        return self.streams()

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
