"""How good poses and drawn maps are.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kp3d_rl.geometry import align
from kp3d_rl.geometry_aware.network import GeometryAwareNetwork, turned
from kp3d_rl.geometry_aware.skeleton import SkeletonViews, relative_rotation


def mpjpe(estimated: Tensor, joints: Tensor) -> Tensor:
    """Mean per joint position error, both relative to the root.

    :param estimated: (..., J, 3), the root first.
    :param joints: (..., J, 3) in the same frame and unit.
    :return: (...) in that unit.
    """
    apart = (estimated - estimated[..., :1, :]) - (joints - joints[..., :1, :])
    return torch.linalg.vector_norm(apart, dim=-1).mean(-1)


def pmpjpe(estimated: Tensor, joints: Tensor) -> Tensor:
    """The same after the best rotation, translation and scale (Procrustes), Human3.6M's protocol 2.

    :param estimated: (..., J, 3).
    :param joints: (..., J, 3).
    :return: (...) in the joints' unit.
    """
    rotation, translation, scale = align(estimated, joints, scale=True)
    moved = scale[..., None, None] * (estimated @ rotation.mT) + translation.unsqueeze(-2)
    return torch.linalg.vector_norm(moved - joints, dim=-1).mean(-1)


def iou(drawn: Tensor, maps: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of what is drawn and what should be, all channels together.

    :param drawn: (B, L, H, W).
    :param maps: (B, L, H, W), 0 or 1.
    :param threshold: from where on something counts as drawn.
    :return: (B,).
    """
    ours, theirs = (values.flatten(1) > limit for values, limit in ((drawn, threshold), (maps, 0.5)))
    return (ours & theirs).sum(1) / (ours | theirs).sum(1).clamp(min=1)


@torch.no_grad()
def judge_synthesis(
    there: GeometryAwareNetwork,
    back: GeometryAwareNetwork,
    source: SkeletonViews,
    target: SkeletonViews,
    wrong: Tensor | None = None,
    batch: int = 256,
) -> dict[str, float]:
    """How well views of other cameras are drawn.

    :param there: the network that draws.
    :param back: the other one, whose points of the target views must be the same.
    :param source: N poses in one view each.
    :param target: the same poses in another view each.
    :param wrong: (N, 3, 3) rotations taken instead of the right ones.
    :param batch: of how many at once.
    :return: "iou", the mean over poses; "equivariance", the mean of ||R G_i - G_j|| / ||G_j||.
    """
    there.eval()
    back.eval()
    device = next(there.parameters()).device
    rotations = relative_rotation(source.rotations[:, 0], target.rotations[:, 0]) if wrong is None else wrong
    overlaps, apart = [], []
    for rows in torch.arange(len(source)).split(batch):
        maps, wanted = (there.maps(views.uv[rows, 0].to(device)) for views in (source, target))
        points = turned(there.encode(maps), rotations[rows].to(device))
        overlaps.append(iou(there.decode(points), wanted))
        found = back.encode(wanted)
        apart.append(
            torch.linalg.vector_norm((points - found).flatten(1), dim=1)
            / torch.linalg.vector_norm(found.flatten(1), dim=1).clamp(min=1e-9)
        )
    return {"iou": float(torch.cat(overlaps).mean()), "equivariance": float(torch.cat(apart).mean())}
