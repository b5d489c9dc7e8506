"""Pinhole cameras that see one scene: projection, its exact inverse, crops as intrinsics, and the workspace box.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_EDGES = tuple((i, i | bit) for bit in (4, 2, 1) for i in range(8) if not i & bit)


@dataclass(frozen=True)
class Rig:
    """V calibrated cameras that give images of one size.

    Batch dimensions of the two tensors broadcast, so moving cameras need poses ``(..., V, 4, 4)`` only, and random
    crops intrinsics ``(..., V, 3, 3)`` only.

    :param intrinsics: (..., V, 3, 3) pixels, ``[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]``.
    :param world_from_camera: (..., V, 4, 4) rigid poses, metres, OpenCV axes.
    :param height: rows of every image.
    :param width: columns of every image.
    """

    intrinsics: Tensor
    world_from_camera: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        k, pose = self.intrinsics.shape, self.world_from_camera.shape
        if len(k) < 3 or len(pose) < 3 or k[-2:] != (3, 3) or pose[-2:] != (4, 4) or k[-3] != pose[-3]:
            raise ValueError(
                "a Rig needs intrinsics (..., V, 3, 3) and world_from_camera (..., V, 4, 4) with the same V, "
                f"not {tuple(k)} and {tuple(pose)}"
            )

    @classmethod
    def from_arrays(
        cls,
        intrinsics: object,
        world_from_camera: object,
        height: int,
        width: int,
        dtype: torch.dtype = torch.float32,
    ) -> Rig:
        """Build a rig from arrays, nested lists or tensors, and check that they are what they should be.

        :raises ValueError: where a pose is not rigid, or intrinsics are skewed or not those of a pinhole.
        """
        rig = cls(
            torch.as_tensor(intrinsics, dtype=torch.float64),
            torch.as_tensor(world_from_camera, dtype=torch.float64),
            int(height),
            int(width),
        )
        _check_intrinsics(rig.intrinsics)
        _check_rigid(rig.world_from_camera)
        return rig.to(dtype)

    @property
    def num_views(self) -> int:
        """V, the number of cameras."""
        return self.intrinsics.shape[-3]

    @property
    def centres(self) -> Tensor:
        """Optical centres, (..., V, 3) world metres."""
        return self.world_from_camera[..., :3, 3]

    @property
    def rotations(self) -> Tensor:
        """Rotations world-from-camera, (..., V, 3, 3): column 2 is the line of sight in the world."""
        return self.world_from_camera[..., :3, :3]

    def to(self, *args: object, **kwargs: object) -> Rig:
        """The same rig on another device or in another dtype (arguments as for ``Tensor.to``)."""
        return dataclasses.replace(
            self,
            intrinsics=self.intrinsics.to(*args, **kwargs),
            world_from_camera=self.world_from_camera.to(*args, **kwargs),
        )

    def with_poses(self, world_from_camera: Tensor) -> Rig:
        """The same lenses at other places: cameras that move.

        :param world_from_camera: (..., V, 4, 4), one pose for each camera and each batch entry.
        """
        return dataclasses.replace(self, world_from_camera=world_from_camera)

    def select(self, view_indices: Sequence[int]) -> Rig:
        """A rig of some of the cameras, in the order given."""
        index = torch.as_tensor(view_indices, dtype=torch.long, device=self.intrinsics.device)
        return dataclasses.replace(
            self,
            intrinsics=self.intrinsics.index_select(-3, index),
            world_from_camera=self.world_from_camera.index_select(-3, index.to(self.world_from_camera.device)),
        )

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project points into every view.

        Nothing is clamped: behind the camera the depth is negative and uv is the mirrored image; see :func:`in_front`.

        :param points: (..., K, 3) world metres.
        :return: uv (..., V, K, 2) pixels and depth (..., V, K) metres.
        """
        return self.project_each(points.unsqueeze(-3))

    def project_each(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project into every view that view's own points.

        :param points: (..., V, K, 3) world metres (a V of 1 broadcasts).
        :return: uv (..., V, K, 2) pixels and depth (..., V, K) metres.
        """
        in_camera = (points - self.centres.unsqueeze(-2)) @ self.rotations  # rows: (R^T (p - c))^T
        focal, principal = self._focal_and_principal()
        depth = in_camera[..., 2]
        return in_camera[..., :2] / depth.unsqueeze(-1) * focal + principal, depth

    def unproject(self, uv: Tensor, depth: Tensor) -> Tensor:
        """The world point that each view sees at a pixel and depth: the exact inverse of :meth:`project_each`.

        :param uv: (..., V, K, 2) pixels.
        :param depth: (..., V, K) metres along the optical axis.
        :return: (..., V, K, 3) world metres.
        """
        plane = self.plane(uv)
        in_camera = torch.cat([plane, torch.ones_like(plane[..., :1])], -1) * depth.unsqueeze(-1)
        return in_camera @ self.rotations.mT + self.centres.unsqueeze(-2)

    def plane(self, uv: Tensor) -> Tensor:
        """Pixels to normalised coordinates, each camera's x and y at depth 1. (..., V, K, 2) -> (..., V, K, 2)."""
        focal, principal = self._focal_and_principal()
        return (uv - principal) / focal

    def crop(self, top: Tensor | int, left: Tensor | int, height: int, width: int) -> Rig:
        """The rig whose images are the windows ``[top : top + height, left : left + width]`` of this one's.

        :param top: first row, int or (..., V); different for each view and batch entry if wanted.
        :param left: first column, likewise.
        """
        like = self.intrinsics
        top = torch.as_tensor(top, dtype=like.dtype, device=like.device)
        left = torch.as_tensor(left, dtype=like.dtype, device=like.device)
        left, top = torch.broadcast_tensors(left, top)
        shift = torch.stack([left, top, torch.zeros_like(top)], -1)
        intrinsics = like - torch.nn.functional.pad(shift.unsqueeze(-1), (2, 0))  # the third column holds cx and cy
        return dataclasses.replace(self, intrinsics=intrinsics, height=height, width=width)

    def pad(self, top: int, bottom: int, left: int, right: int) -> Rig:
        """The rig whose images have that many more rows and columns on each side: a crop to the outside."""
        return self.crop(-top, -left, self.height + top + bottom, self.width + left + right)

    def resize(self, height: int, width: int) -> Rig:
        """The rig whose images are this one's, resampled to another size."""
        ratio = self.intrinsics.new_tensor([[width / self.width], [height / self.height], [1.0]])
        return dataclasses.replace(self, intrinsics=self.intrinsics * ratio, height=height, width=width)

    def _focal_and_principal(self) -> tuple[Tensor, Tensor]:
        """(..., V, 1, 2) each, in the order u, v."""
        focal = self.intrinsics[..., :2, :2].diagonal(dim1=-2, dim2=-1)
        return focal.unsqueeze(-2), self.intrinsics[..., :2, 2].unsqueeze(-2)


@dataclass(frozen=True)
class Workspace:
    """The axis-aligned box in which a task happens; keypoints are handed to policies in its coordinates.

    :param centre: (3,) world metres.
    :param half_extents: (3,) metres, half the side lengths.
    """

    centre: Tensor
    half_extents: Tensor

    def __post_init__(self) -> None:
        if self.centre.shape != (3,) or self.half_extents.shape != (3,):
            raise ValueError(
                "a Workspace needs centre (3,) and half_extents (3,), "
                f"not {tuple(self.centre.shape)} and {tuple(self.half_extents.shape)}"
            )

    @classmethod
    def from_arrays(cls, centre: object, half_extents: object, dtype: torch.dtype = torch.float32) -> Workspace:
        """Build a workspace from arrays, lists or tensors.

        :raises ValueError: where a half-extent is not positive.
        """
        box = cls(torch.as_tensor(centre, dtype=dtype), torch.as_tensor(half_extents, dtype=dtype))
        if not bool((box.half_extents > 0).all()):
            raise ValueError(f"half_extents of a Workspace must be positive, not {box.half_extents.tolist()}")
        return box

    def to(self, *args: object, **kwargs: object) -> Workspace:
        """The same box on another device or in another dtype (arguments as for ``Tensor.to``)."""
        return Workspace(self.centre.to(*args, **kwargs), self.half_extents.to(*args, **kwargs))

    def normalise(self, points: Tensor) -> Tensor:
        """World metres to box coordinates: the box becomes [-1, 1]^3. (..., 3) -> (..., 3)."""
        return (points - self.centre) / self.half_extents

    def denormalise(self, points: Tensor) -> Tensor:
        """Box coordinates to world metres, the inverse of :meth:`normalise`. (..., 3) -> (..., 3)."""
        return points * self.half_extents + self.centre

    def contains(self, points: Tensor) -> Tensor:
        """Whether points lie in the box, faces included. (..., 3) world metres -> (...) bool."""
        return ((points - self.centre).abs() <= self.half_extents).all(-1)

    def corners(self) -> Tensor:
        """(8, 3) world metres; bits 4, 2, 1 of a corner's index choose the high side in x, y, z."""
        signs = [[1.0 if i & bit else -1.0 for bit in (4, 2, 1)] for i in range(8)]
        return self.denormalise(self.centre.new_tensor(signs))

    @staticmethod
    def edges() -> tuple[tuple[int, int], ...]:
        """The 12 edges as pairs of indices into :meth:`corners`."""
        return _EDGES

    def depth_range(self, rig: Rig, minimum: float = 0.01) -> tuple[Tensor, Tensor]:
        """Nearest and farthest depth of the box in every view.

        :param minimum: metres; a box that reaches behind the camera starts here instead.
        :return: near and far, each (..., V) metres.
        """
        depth = rig.project(self.corners())[1]
        return depth.amin(-1).clamp(min=minimum), depth.amax(-1).clamp(min=minimum)


def in_front(depth: Tensor, minimum: float = 1e-3) -> Tensor:
    """Whether points lie in front of the camera by more than ``minimum`` metres, so that their uv means something."""
    return depth > minimum


def look_at(position: object, target: object, up: object = (0.0, 0.0, 1.0)) -> Tensor:
    """The pose of a camera at ``position`` that looks at ``target`` and holds ``up`` upwards in its image.

    :param position: (..., 3) world metres.
    :param target: (..., 3) world metres.
    :param up: (..., 3), any length.
    :return: world_from_camera (..., 4, 4).
    :raises ValueError: where position and target coincide, or the view is parallel to ``up``.
    """
    position, target, up = torch.broadcast_tensors(*_as_floats(position, target, up))
    forward = target - position
    right = torch.linalg.cross(forward, up)
    if bool((torch.linalg.vector_norm(right, dim=-1) < 1e-6 * torch.linalg.vector_norm(forward, dim=-1)).any()):
        raise ValueError("look_at: the view is parallel to up; pass another up, for a top view e.g. (0, 1, 0)")
    if not bool((torch.linalg.vector_norm(forward, dim=-1) > 0).all()):
        raise ValueError("look_at: position and target coincide")
    forward, right = (torch.nn.functional.normalize(axis, dim=-1) for axis in (forward, right))
    down = torch.linalg.cross(forward, right)
    upper = torch.stack([right, down, forward, position], -1)
    last = upper.new_tensor([[0.0, 0.0, 0.0, 1.0]]).expand(*upper.shape[:-2], 1, 4)
    return torch.cat([upper, last], -2)


def intrinsics_from_fovy(fovy_degrees: object, height: int, width: int) -> Tensor:
    """Intrinsics of a camera with square pixels and its axis through the middle of the image.

    :param fovy_degrees: (...) vertical field of view, degrees, between 0 and 180.
    :return: (..., 3, 3) pixels.
    """
    (fovy,) = _as_floats(fovy_degrees)
    if not bool(((fovy > 0) & (fovy < 180)).all()):
        raise ValueError(f"a field of view lies between 0 and 180 degrees, not {fovy_degrees}")
    focal = 0.5 * height / torch.tan(fovy * (math.pi / 360))
    scale = torch.stack([focal, focal, torch.ones_like(focal)], -1).diag_embed()
    return scale + scale.new_tensor([[0.0, 0.0, width / 2], [0.0, 0.0, height / 2], [0.0, 0.0, 0.0]])


def crop_images(images: Tensor, top: Tensor | int, left: Tensor | int, height: int, width: int) -> Tensor:
    """Cut a window out of every image, each at its own place; :meth:`Rig.crop` gives the cameras that fit.

    :param images: (..., V, C, H, W), any dtype. Images in channels-last memory are cut in one pass.
    :param top: first row, int or integer tensor (..., V); its batch dimensions broadcast against the images'.
    :param left: first column, likewise.
    :return: (..., V, C, height, width), in channels-last memory unless both offsets are plain ints (then a view).
    :raises ValueError: where a window leaves the image (on a GPU only checked for plain ints, to avoid waiting for it).
    """
    rows, columns = images.shape[-2:]
    _check_window(top, height, rows, "row")
    _check_window(left, width, columns, "column")
    if isinstance(top, int) and isinstance(left, int):
        return images[..., top : top + height, left : left + width]
    device, lead = images.device, images.shape[:-3]
    top = torch.as_tensor(top, device=device)[..., None, None]
    left = torch.as_tensor(left, device=device)[..., None, None]
    image = torch.arange(math.prod(lead), device=device).view(*lead, 1, 1)
    row = top + torch.arange(height, device=device).unsqueeze(-1)
    pixel = (image * rows + row) * columns + left + torch.arange(width, device=device)
    flat = images.movedim(-3, -1).reshape(-1, images.shape[-3])
    return flat.index_select(0, pixel.flatten()).view(*pixel.shape, -1).movedim(-1, -3)


def _as_floats(*values: object) -> list[Tensor]:
    """Tensors of one floating dtype: that of the inputs, the default one for Python numbers."""
    tensors = [torch.as_tensor(value) for value in values]
    given = [t for t, value in zip(tensors, values, strict=True) if hasattr(value, "dtype") and t.is_floating_point()]
    dtype = given[0].dtype if given else torch.get_default_dtype()
    return [t.to(dtype) for t in tensors]


def _check_window(start: Tensor | int, length: int, size: int, what: str) -> None:
    if isinstance(start, Tensor) and (start.device.type != "cpu" or not start.numel()):
        return
    low, high = (start, start) if isinstance(start, int) else (int(start.min()), int(start.max()))
    if low < 0 or high + length > size:
        raise ValueError(f"a window of {length} {what}s from {what} {low}..{high} leaves an image of {size} {what}s")


def _check_intrinsics(intrinsics: Tensor) -> None:
    k = intrinsics
    off = torch.stack([k[..., 0, 1], k[..., 1, 0], k[..., 2, 0], k[..., 2, 1], k[..., 2, 2] - 1], -1)
    if bool((off.abs() > 1e-6).any()) or not bool((k[..., :2, :2].diagonal(dim1=-2, dim2=-1) > 0).all()):
        raise ValueError("intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, with fx, fy > 0")


def _check_rigid(poses: Tensor) -> None:
    rotation = poses[..., :3, :3]
    eye = torch.eye(4, dtype=poses.dtype, device=poses.device)
    off = (rotation @ rotation.mT - eye[:3, :3]).abs().max()
    if not (off < 1e-4 and bool((torch.linalg.det(rotation) > 0).all()) and bool((poses[..., 3, :] == eye[3]).all())):
        raise ValueError(
            "world_from_camera must be rigid poses [[R, t], [0, 0, 0, 1]] with R a right-handed rotation "
            "(OpenCV axes: x right, y down, z forward)"
        )
