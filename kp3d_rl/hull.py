"""The visual hull: what of each view can be inside of the workspace box, by what all other views show.

Source: Laurentini, "The visual hull concept for silhouette-based image understanding", IEEE PAMI 16(2), 1994. A place
can only be filled where every camera that has it in view sees something there. What a view shows of an arm that reaches
in from behind the box is told from what it shows of the hand by the other views alone: no labels, no depth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad

from kp3d_rl.cameras import Rig, Workspace

FINENESS = 32
"""Voxels along the box's longest side."""


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

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Keep of silhouettes what can be in the box, to within the size of a voxel.

        :param silhouettes: (B, V, H, W) bool, where something is seen.
        :return: (B, V, H, W) bool, of which ``silhouettes`` is nowhere exceeded.
        """
        coarse = max_pool2d(silhouettes.float(), self.cell, ceil_mode=True)
        # A voxel counts as seen from half a cell beside it: a thing thinner than a voxel may pass by its centre.
        widened = pad(max_pool2d(coarse, 3, stride=1, padding=1).flatten(2), (0, 1), value=1.0)
        # The batch comes last, so that whole rows of it are looked up and added: several times faster.
        widened = widened.permute(1, 2, 0).contiguous()  # (V, cells, B)
        filled = widened[0].index_select(0, self.cells[0])  # (N, B)
        for view, cells in zip(widened[1:], self.cells[1:], strict=True):
            filled *= view.index_select(0, cells)
        shown = torch.zeros_like(widened)
        for view, cells in zip(shown, self.cells, strict=True):
            view.index_add_(0, cells, filled)
        shown = shown[:, :-1].permute(2, 0, 1).unflatten(2, (self.rows, self.columns)) > 0
        shown = shown.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        return silhouettes & shown[..., : silhouettes.shape[-2], : silhouettes.shape[-1]]


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
