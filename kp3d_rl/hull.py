"""The visual hull: what of each view can be inside of the workspace box, by what all other views show.

Source: Laurentini, "The visual hull concept for silhouette-based image understanding", IEEE PAMI 16(2), 1994. A place
can only be filled where every camera that has it in view sees something there. What a view shows of an arm that reaches
in from behind the box is told from what it shows of the hand by the other views alone: no labels, no depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kp3d_rl.cameras import Rig, Workspace

FINENESS = 64
"""Voxels along the box's longest side."""
BITS = 64
"""Images in a word: whole batches are carved by a few operations on words, several times faster than on floats."""


class VisualHull(nn.Module):
    """Tells what of silhouettes can be in a box. Without parameters, and it follows from its arguments: no state.

    :param rig: (V,) cameras that stand still.
    :param workspace: the box.
    """

    def __init__(self, rig: Rig, workspace: Workspace) -> None:
        super().__init__()
        points, pitch = voxels(workspace)
        uv, depth = rig.project(points)
        nearest = workspace.depth_range(rig)[0]
        # Squares of pixels no smaller than a voxel looks in any view, so that voxels leave no gaps.
        self.cell = max(1, math.ceil(float((pitch * rig.intrinsics[..., 0, 0] / nearest).max())))
        self.rows, self.columns = math.ceil(rig.height / self.cell), math.ceil(rig.width / self.cell)
        column, row = (uv / self.cell).floor().long().unbind(-1)
        seen = (depth > 0) & (row >= 0) & (row < self.rows) & (column >= 0) & (column < self.columns)
        # Behind the last cell one more stands for all that is out of a view: what it does not show it cannot deny.
        cells = torch.where(seen, row * self.columns + column, self.rows * self.columns)
        self.register_buffer("cells", cells, persistent=False)  # (V, N)
        self.register_buffer("shown_in", inverted(cells, self.rows * self.columns), persistent=False)  # (V, cells, M)

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Keep of silhouettes what can be in the box, to within the size of a voxel.

        :param silhouettes: (B, V, H, W) bool, where something is seen.
        :return: (B, V, H, W) bool, of which ``silhouettes`` is nowhere exceeded.
        """
        # A voxel counts as seen from a pixel beside it: a thing thinner than a voxel may pass by its centre.
        words = packed(self._pooled(widened(silhouettes)))  # (words, V, rows, columns)
        cells = pad(words.flatten(2), (0, 1), value=-1)  # -1: all bits
        filled = reduce(torch.bitwise_and, (cells[:, view, at] for view, at in enumerate(self.cells)))
        filled = pad(filled, (0, 1))  # (words, N + 1), the last one for the ends of short lists
        shown = torch.stack([_any(filled[:, at]) for at in self.shown_in], 1)
        shown = unpacked(shown, len(silhouettes)).unflatten(2, (self.rows, self.columns))
        shown = shown.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        return silhouettes & shown[..., : silhouettes.shape[-2], : silhouettes.shape[-1]]

    def _pooled(self, images: Tensor) -> Tensor:
        """(B, V, H, W) to (B, V, rows, columns) bool: what is in any pixel of each cell."""
        missing = [n * self.cell - size for n, size in zip((self.rows, self.columns), images.shape[-2:], strict=True)]
        tiles = pad(images, (0, missing[1], 0, missing[0])).unflatten(3, (-1, self.cell)).unflatten(2, (-1, self.cell))
        return _union(tiles[:, :, :, y, :, x] for y in range(self.cell) for x in range(self.cell))


def widened(images: Tensor) -> Tensor:
    """(..., H, W) bool: the union with the eight neighbours of each pixel."""
    height, width = images.shape[-2:]
    framed = pad(images, (1, 1, 1, 1))
    framed = _union(framed[..., x : x + width] for x in range(3))
    return _union(framed[..., y : y + height, :] for y in range(3))


def packed(images: Tensor) -> Tensor:
    """(B, ...) bool as (ceil(B / 64), ...) int64: one bit for each of the batch."""
    words = pad(images.long().movedim(0, -1), (0, -len(images) % BITS)).unflatten(-1, (-1, BITS))
    bits = torch.arange(BITS, device=images.device)
    return (words << bits).sum(-1).movedim(-1, 0)


def unpacked(words: Tensor, count: int) -> Tensor:
    """What :func:`packed` was given.

    :param words: (ceil(count / 64), ...) int64.
    :param count: B.
    """
    bits = torch.arange(BITS, device=words.device).view(BITS, *[1] * (words.dim() - 1))
    return ((words.unsqueeze(1) >> bits) & 1).flatten(0, 1)[:count].bool()


def inverted(cells: Tensor, count: int) -> Tensor:
    """Which voxels each cell shows.

    :param cells: (V, N) the cell of each voxel; ``count`` for none.
    :param count: of cells.
    :return: (V, count, M) indices of voxels, M a power of two; the rest of short lists is filled with N.
    """
    most = max(int(torch.bincount(row, minlength=count + 1)[:count].max()) for row in cells)
    lists = cells.new_full((len(cells), count + 1, 2 ** math.ceil(math.log2(max(most, 1)))), cells.shape[1])
    for view, row in enumerate(cells):
        order = row.argsort(stable=True)
        order = order[row[order] < count]
        sizes = torch.bincount(row[order], minlength=count)
        first = (sizes.cumsum(0) - sizes)[row[order]]
        lists[view, row[order], torch.arange(len(order), device=row.device) - first] = order
    return lists[:, :count]


def _any(words: Tensor) -> Tensor:
    """The union over the last dimension, whose size is a power of two."""
    while words.shape[-1] > 1:
        first, second = words.chunk(2, -1)
        words = first | second
    return words[..., 0]


def _union(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.bitwise_or, parts)


def voxels(workspace: Workspace) -> tuple[Tensor, float]:
    """Fill a box.

    :param workspace: the box.
    :return: (N, 3) centres of equal cubes (to within rounding), world metres, and the length of their sides.
    """
    sides = 2.0 * workspace.half_extents
    pitch = float(sides.max()) / FINENESS
    counts = [max(1, math.ceil(float(side) / pitch - 1e-6)) for side in sides]
    along = [(torch.arange(n, device=sides.device, dtype=sides.dtype) + 0.5) * (2.0 / n) - 1.0 for n in counts]
    return workspace.denormalise(torch.stack(torch.meshgrid(*along, indexing="ij"), -1).flatten(0, 2)), pitch
