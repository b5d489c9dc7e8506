"""The frames of an episode that came before the present one, for policies that must see motion."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.errors import UserError


class FrameHistory:
    """The last frames of an episode, the newest of which is observed as ``images`` and the others as ``previous``.

    An episode begins with as many copies of its first frame.

    :param count: S, how many frames are observed together, at least 2.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._frames: list[Any] = []

    def begin(self, images: Any) -> None:
        """An episode's first frame.

        :param images: (V, H, W, 3), an array or a tensor; kept, not copied.
        """
        self._frames = [images] * self.count

    def add(self, images: Any) -> None:
        """The next frame.

        :param images: (V, H, W, 3).
        """
        if not self._frames:
            self.begin(images)
        else:
            self._frames = [images, *self._frames[:-1]]

    @property
    def previous(self) -> list[Any]:
        """The S - 1 frames before the newest, the latest of them first."""
        return self._frames[1:]

    def save(self) -> np.ndarray | None:
        """(S - 1, V, H, W, 3) uint8 on the host, for a checkpoint; None before the first episode."""
        frames = [frame.cpu().numpy() if hasattr(frame, "cpu") else frame for frame in self.previous]
        return np.stack(frames) if frames else None

    def load(self, frames: Any, shape: tuple[int, ...]) -> None:
        """Undo :meth:`save`; the newest frame is to be added.

        :param frames: whatever a file holds.
        :param shape: (S - 1, V, H, W, 3).
        :raises UserError: for anything else.
        """
        if frames is None:
            self._frames = []
            return
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.shape != shape:
            raise UserError(f"the state's earlier frames are no uint8 array of shape {shape}")
        self._frames = [*frames, frames[-1]]
