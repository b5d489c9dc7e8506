"""The frame buffer against a plain list."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.buffers import FrameBuffer, to_tensors


def batch(first: int, count: int) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + count, dtype=np.uint8)
    return {"images": np.tile(numbers[:, None, None], (1, 2, 3)), "proprio": numbers.astype(np.float32)}


def test_ring_keeps_the_newest_frames() -> None:
    buffer, everything = FrameBuffer(5), []
    for first in range(0, 24, 3):
        buffer.add(batch(first, 3))
        everything += range(first, first + 3)
        kept = {int(x) for x in np.unique(buffer.sample(200, np.random.default_rng(0))["images"])}
        assert kept == set(everything[-5:])
        assert len(buffer) == min(5, len(everything))
        assert buffer.last(2)["images"][:, 0, 0].tolist() == everything[:-3:-1]
    assert set(buffer.stored) == {"images"}


def test_frames_are_copies_of_their_own_type() -> None:
    buffer, added = FrameBuffer(4), batch(1, 2)
    buffer.add(added)
    added["images"][:] = 99
    drawn = buffer.sample(3, np.random.default_rng(0))
    assert drawn["images"].dtype == np.uint8 and drawn["images"].max() <= 2
    drawn["images"][:] = 77
    assert buffer.last(2)["images"].max() <= 2
    assert to_tensors(drawn, "cpu")["images"].dtype == torch.uint8


def test_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        FrameBuffer(0)
