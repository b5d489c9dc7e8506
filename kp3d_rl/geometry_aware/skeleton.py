"""Skeletons, how a camera turned to the root sees them, and their maps: one channel for each limb.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.cameras import look_at


@dataclass(frozen=True)
class Skeleton:
    """Names of joints, and which are joined; left and right are different joints.

    :param joints: J names, the root first.
    :param limbs: L pairs of joints.
    """

    joints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(set(self.joints)) != len(self.joints):
            raise ValueError(f"joints of a skeleton must differ, got {', '.join(self.joints)}")
        for limb in self.limbs:
            if not all(0 <= joint < len(self.joints) for joint in limb) or limb[0] == limb[1]:
                raise ValueError(f"a limb joins two of {len(self.joints)} joints, not {limb}")

    def order_of(self, names: Sequence[str]) -> list[int]:
        """Where each of this skeleton's joints is in another list of the same names.

        :param names: as somebody else orders them.
        :raises ValueError: where one is missing; more than the skeleton's may be there.
        """
        missing = [name for name in self.joints if name not in names]
        if missing:
            raise ValueError(f"the skeleton's {', '.join(missing)} not among the joints given: {', '.join(names)}")
        return [list(names).index(name) for name in self.joints]


@dataclass(frozen=True)
class SkeletonViews:
    """N poses, each in C views, as square images centred at the root.

    :param uv: (N, C, J, 2) pixels; NaN where a joint was not found.
    :param rotations: (N, C, 3, 3) world-from-camera.
    :param joints: (N, J, 3) relative to the root, metres, world axes: labels, and what results are judged by.
    :param size: pixels per side.
    """

    uv: Tensor
    rotations: Tensor
    joints: Tensor
    size: int

    def __post_init__(self) -> None:
        lead, count = self.uv.shape[:2], self.uv.shape[-2]
        shapes = (tuple(self.uv.shape), tuple(self.rotations.shape), tuple(self.joints.shape))
        if self.uv.dim() != 4 or shapes[1:] != ((*lead, 3, 3), (lead[0], count, 3)):
            raise ValueError(f"views of skeletons must be (N, C, J, 2), (N, C, 3, 3) and (N, J, 3), not {shapes}")
        check_rotations(self.rotations)

    def __len__(self) -> int:
        return len(self.uv)

    def in_cameras(self) -> Tensor:
        """(N, C, J, 3) the poses in each camera's frame, metres from the root."""
        return self.joints.unsqueeze(1) @ self.rotations

    def select(self, poses: Tensor) -> SkeletonViews:
        """Some of the poses.

        :param poses: indices, or a mask of N.
        """
        return SkeletonViews(self.uv[poses], self.rotations[poses], self.joints[poses], self.size)

    def usable(self, least: int = 10) -> tuple[SkeletonViews, int]:
        """The poses of which every view shows the root and enough joints, and how many were left out.

        :param least: joints that must be there: found, and within the image.
        """
        seen = ((self.uv >= 0) & (self.uv <= self.size)).all(-1)  # NaN is not
        kept = (seen[..., 0] & (seen.sum(-1) >= min(least, seen.shape[-1]))).all(1)
        return self.select(kept), int((~kept).sum())


def check_rotations(rotations: Tensor) -> None:
    """Refuse what is no rotation.

    :param rotations: (..., 3, 3).
    :raises ValueError: saying how far the worst is off.
    """
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    off = (rotations @ rotations.mT - eye).abs().amax() if rotations.numel() else eye.new_zeros(())
    if not off < 1e-3 or not bool((torch.linalg.det(rotations.float()) > 0).all()):
        raise ValueError(f"rotations must be orthonormal and right-handed: R R^T is off by {float(off):.2g}")


def relative_rotation(source: Tensor, target: Tensor) -> Tensor:
    """The rotation that takes points from one camera's frame to another's: x_target = R x_source about the root.

    :param source: (..., 3, 3) world-from-camera.
    :param target: (..., 3, 3) likewise.
    """
    return target.mT @ source


def see(joints: Tensor, places: Tensor, extent: float, size: int) -> tuple[Tensor, Tensor]:
    """What cameras turned to the root see of poses: an exact crop, as turning a camera is a homography of its image.

    :param joints: (..., J, 3) relative to the root, metres, world axes, z up.
    :param places: (..., C, 3) of the cameras relative to the root, metres.
    :param extent: metres that the image shows at the root's depth.
    :param size: pixels per side.
    :return: uv (..., C, J, 2) pixels, and rotations (..., C, 3, 3) world-from-camera.
    :raises ValueError: where a joint is behind a camera.
    """
    rotations = look_at(places, torch.zeros_like(places))[..., :3, :3]
    distance = torch.linalg.vector_norm(places, dim=-1)[..., None, None]
    inside = joints.unsqueeze(-3) @ rotations
    depth = inside[..., 2:] + distance
    if not bool((depth > 0).all()):
        behind = int((depth <= 0).any(-1).any(-1).sum())
        raise ValueError(
            f"{behind} of {depth[..., 0, 0].numel()} skeletons reach behind a camera: it must stand farther"
        )
    return size / 2 + size / extent * inside[..., :2] * distance / depth, rotations


def skeleton_maps(
    uv: Tensor, limbs: Sequence[tuple[int, int]], size: int, thickness: float, soft: bool = False
) -> Tensor:
    """Which pixels each limb covers.

    :param uv: (..., J, 2) pixels; limbs of a joint that is NaN are left out.
    :param limbs: L pairs of joints.
    :param size: rows and columns.
    :param thickness: of the lines, pixels.
    :param soft: pixels on a line's edge count by how much of them it covers, about; small maps tell more that way.
    :return: (..., L, size, size) 0 to 1, float32; above 0.5 where the line covers a pixel's middle.
    """
    first, second = (uv[..., [limb[end] for limb in limbs], :].float() for end in (0, 1))
    centres = torch.arange(size, device=uv.device) + 0.5
    along = second - first
    square = along.square().sum(-1).clamp(min=1e-6)
    across, down = (centres - first[..., axis, None] for axis in (0, 1))  # (..., L, size)
    share = along / square.unsqueeze(-1)
    t = (down * share[..., 1, None]).unsqueeze(-1) + (across * share[..., 0, None]).unsqueeze(-2)
    t = t.clamp_(0.0, 1.0)
    off = (across.unsqueeze(-2) - t * along[..., 0, None, None]).square_()
    off += (down.unsqueeze(-1) - t * along[..., 1, None, None]).square_()
    if soft:
        return (0.5 + 0.5 * thickness - off.sqrt_()).clamp_(0.0, 1.0).nan_to_num_(0.0)
    return (off <= (0.5 * thickness) ** 2).float()  # NaN is not
