"""What keypoints of two views must fulfil, as pure functions. A batch of B pairs has 2 views; K keypoints each.

Source: Suwajanakorn et al. (NeurIPS 2018), section 4, with the factors of the authors' code where they differ. The
variance of the heat maps is :func:`kp3d_rl.losses.variance_loss`. Image coordinates count in half sides of the image.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.cameras import Rig
from kp3d_rl.geometry import align, rotation_angle
from kp3d_rl.options import bounded, check_options


@dataclass(frozen=True)
class KeypointNetLossWeights:
    """What each term counts for; the defaults are the original's.

    :param consistency: a view's keypoints lie where the other view's are seen from it.
    :param pose: the rotation between both sets is that between the cameras.
    :param separation: keypoints are apart from each other.
    :param silhouette: heat maps lie on the object.
    :param variance: heat maps are narrow.
    :param orientation: the orientation network finds front and back.
    """

    consistency: float = bounded(1.0, least=0, most=1e6)
    pose: float = bounded(0.2, least=0, most=1e6)
    separation: float = bounded(1.0, least=0, most=1e6)
    silhouette: float = bounded(1.0, least=0, most=1e6)
    variance: float = bounded(0.5, least=0, most=1e6)
    orientation: float = bounded(1.0, least=0, most=1e6)

    def __post_init__(self) -> None:
        check_options(self, "loss")


def consistency_loss(rig: Rig, uv: Tensor, points: Tensor) -> Tensor:
    """How far each view's keypoints are from where the other view's are seen: squared, summed over both directions.

    :param rig: 2 views, poses (B, 2, 4, 4).
    :param uv: (B, 2, K, 2) pixels.
    :param points: (B, 2, K, 3) the same keypoints in space, as each view says.
    :return: scalar, square half sides of the image, the mean over pairs and keypoints.
    """
    seen = rig.project_each(points.flip(-3))[0]
    return _half_sides(seen - uv, rig).square().sum(-1).mean(-1).sum(-1).mean()


def relative_pose_loss(points: Tensor, noise: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """The angle of the rotation that takes one view's keypoints to the other's: in the object's frame there is none.

    It is the angle between estimated and true relative rotation of the cameras, ``2 arcsin(|R' - R| / (2 sqrt 2))``
    with the Frobenius norm, since each set was brought to the object's frame by its own camera's pose. The noise keeps
    keypoints apart: points that lie close together say little about a rotation.

    :param points: (B, 2, K, 3) object units.
    :param noise: standard deviation of what is added to each coordinate, object units.
    :param generator: to draw it from, on the CPU.
    :return: scalar, radians, the mean over pairs.
    """
    if noise:
        drawn = torch.randn(points.shape, generator=generator, dtype=points.dtype)
        points = points + noise * drawn.to(points.device)
    rotation = align(points[..., 0, :, :], points[..., 1, :, :])[0]
    return rotation_angle(rotation, torch.eye(3, dtype=points.dtype, device=points.device).expand_as(rotation)).mean()


def hinge_separation_loss(points: Tensor, squared: float = 0.05) -> Tensor:
    """How much keypoints are nearer to each other than they may be.

    :param points: (..., K, 3) of each view, object units.
    :param squared: square of the distance from which on they are far enough apart.
    :return: scalar: the sum of ``max(0, squared - d^2)`` over ordered pairs of different keypoints, divided by K, the
        mean over views and pairs, as in the authors' code (the paper divides by K^2).
    """
    count = points.shape[-2]
    apart = (points.unsqueeze(-2) - points.unsqueeze(-3)).square().sum(-1)
    other = ~torch.eye(count, dtype=torch.bool, device=points.device)
    return ((squared - apart).clamp(min=0.0) * other).sum((-2, -1)).mean() / count


def silhouette_loss(heat: Tensor, mask: Tensor) -> Tensor:
    """How little of the heat maps lies on the object: the mean of ``-log`` of that share.

    :param heat: (..., K, h, w), each summing to 1.
    :param mask: (..., h, w) share of each cell that is object.
    """
    return -((heat * mask.unsqueeze(-3)).sum((-2, -1)) + 1e-12).log().mean()


def orientation_loss(rig: Rig, tips: Tensor) -> Tensor:
    """How far front and back are from where the orientation network says.

    :param rig: cameras, poses (B, V, 4, 4).
    :param tips: (B, V, 2, 2) pixels of the object's (1, 0, 0) and (-1, 0, 0).
    :return: scalar, square half sides of the image, the mean over views and tips.
    """
    return _half_sides(tips - axis_tips(rig), rig).square().sum(-1).mean()


def axis_tips(rig: Rig) -> Tensor:
    """(..., V, 2, 2) pixels at which each camera sees the object's (1, 0, 0) and (-1, 0, 0)."""
    ends = rig.world_from_camera.new_tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    return rig.project(ends)[0]


def _half_sides(offset: Tensor, rig: Rig) -> Tensor:
    return offset / offset.new_tensor([rig.width / 2, rig.height / 2])
