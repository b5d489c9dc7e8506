"""Changes of images whose geometry is known: shifts and crops, which are a change of intrinsics, turns and scales.

Sources: Yarats, Kostrikov, Fergus, "Image Augmentation Is All You Need: Regularizing Deep Reinforcement Learning from
Pixels" (DrQ), ICLR 2021: pad by repeating the border, then crop back at a random place. Laskin et al., "Reinforcement
Learning with Augmented Data" (RAD), NeurIPS 2020: crop at a random place, and in the middle where it counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AffineChange:
    """A turn, a scale and a shift about the middle, of each of B images its own; on the CPU.

    :param matrix: (B, 2, 2) from old pixels, about the middle, to new ones.
    :param shift: (B, 2) pixels, after that.
    """

    matrix: Tensor
    shift: Tensor

    @classmethod
    def drawn(
        cls,
        size: tuple[int, int, int],
        turn: float,
        scale: float,
        shift: float,
        generator: torch.Generator | None = None,
    ) -> AffineChange:
        """Draw each image's change, uniformly (the scale's logarithm), on the CPU.

        :param size: B, and the images' height and width in pixels.
        :param turn: degrees, at most, either way.
        :param scale: factor, at most, either way.
        :param shift: share of the image's sides, at most, either way.
        :param generator: of the CPU; None is torch's own.
        """
        count, height, width = size

        def uniform(*shape: int) -> Tensor:
            return 2.0 * torch.rand(count, *shape, generator=generator) - 1.0

        angle, factor = math.radians(turn) * uniform(), scale ** uniform()
        move = shift * uniform(2) * torch.tensor([width, height], dtype=torch.float32)
        cosine, sine = factor * angle.cos(), factor * angle.sin()
        return cls(torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2), move)

    @classmethod
    def turn(cls, count: int, degrees: float) -> AffineChange:
        """The same turn for all.

        :param count: B.
        :param degrees: counterclockwise as one looks at the images, rows downwards.
        """
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return cls(torch.tensor([[cosine, sine], [-sine, cosine]]).expand(count, 2, 2), torch.zeros(count, 2))

    def points(self, uv: Tensor, height: int, width: int) -> Tensor:
        """Where points of the old images come to lie in the new ones, maybe beyond them.

        :param uv: (B, K, 2) pixels, on any device.
        :param height, width: of the images, pixels.
        :return: (B, K, 2) pixels.
        """
        middle = uv.new_tensor([width / 2, height / 2])
        return ((uv - middle) @ self.matrix.mT.to(uv)) + middle + self.shift.unsqueeze(1).to(uv)

    def images(self, images: Tensor, beyond: str = "border") -> Tensor:
        """The new images, as large as the old ones, between whose pixels they are interpolated.

        :param images: (B, C, H, W) of any float type, on any device.
        :param beyond: what is beyond the old image's border: "border" goes on with it, "zeros" is nothing.
        :return: the same shape.
        """
        height, width = images.shape[-2:]
        # grid_sample asks for the way back, with the image from -1 to 1; where that is depends on the sides.
        inverse = torch.linalg.inv(self.matrix)
        back = inverse * inverse.new_tensor([[1.0, height / width], [width / height, 1.0]])
        half = inverse.new_tensor([width / 2, height / 2])
        offset = -(inverse @ self.shift.unsqueeze(-1)).squeeze(-1) / half
        back = torch.cat([back, offset.unsqueeze(-1)], -1).to(images)
        grid = torch.nn.functional.affine_grid(back, list(images.shape), align_corners=False)
        return torch.nn.functional.grid_sample(images, grid, padding_mode=beyond, align_corners=False)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Move every view of every sample by its own random number of pixels, up to ``pixels`` in each direction.

    :param images: (B, V, H, W, 3 S) uint8; frames of S instants on channels are moved together.
    :param pixels: padding on each side; 0 changes nothing.
    :param generator: of the images' device; None is torch's own.
    :return: shifted images (B, V, H, W, 3) uint8, and offsets (B, V, 2) float, the (left, top) of each window in its
        original image, whole pixels: original pixel = shifted pixel + offset.
        :meth:`kp3d_rl.keypoint3d.Keypoint3D.forward` takes both.
    :raises ValueError: for another shape or type, or a negative number of pixels.
    """
    _require_views(images)
    if pixels < 0:
        raise ValueError(f"a random shift is of at least 0 pixels, got {pixels}")
    shape = (*images.shape[:2], 2)
    offset = torch.randint(-pixels, pixels + 1, shape, device=images.device, generator=generator)
    return (_windows(images, offset, pixels) if pixels else images), offset.float()


def random_crop(images: Tensor, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Cut a window out of every view of every sample, each at its own random place.

    :param images: (B, V, H, W, 3 S) uint8; frames of S instants on channels are cut alike.
    :param height: of the window, at most H.
    :param width: of the window, at most W.
    :param generator: of the images' device; None is torch's own.
    :return: (B, V, height, width, 3) uint8.
    :raises ValueError: for another shape or type, or windows that do not fit.
    """
    _require_views(images)
    most = images.new_tensor([images.shape[3] - width, images.shape[2] - height], dtype=torch.long)
    if (most < 0).any() or height < 1 or width < 1:
        raise ValueError(f"no window of {height} x {width} fits into views of {tuple(images.shape[2:4])}")
    drawn = torch.rand((*images.shape[:2], 2), device=images.device, generator=generator)
    return crop(images, (drawn * (most + 1)).long().minimum(most), height, width)


def centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle out of every view; where that is between two pixels, towards the top left.

    :param images: (B, V, H, W, 3) uint8.
    :return: (B, V, height, width, 3), which shares the images' memory.
    """
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def crop(images: Tensor, offset: Tensor, height: int, width: int) -> Tensor:
    """Windows at given places.

    :param images: (B, V, H, W, C).
    :param offset: (B, V, 2) whole (left, top) of each window, which lies inside of its image.
    :return: (B, V, height, width, C).
    """
    batch, views, rows, columns, channels = images.shape
    image = torch.arange(batch * views, device=images.device).view(batch, views, 1)
    row = offset[..., 1:] + torch.arange(height, device=images.device)
    start = ((image * rows + row) * columns + offset[..., :1]) * channels
    return _runs(images.contiguous(), start, width).view(batch, views, height, width, channels)


def _require_views(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 5 or images.shape[-1] % 3:
        raise ValueError(f"images must be (B, V, H, W, 3 S) uint8, got {tuple(images.shape)} {images.dtype}")


def _windows(images: Tensor, offset: Tensor, pixels: int) -> Tensor:
    """The images' windows at (left, top) ``offset`` (B, V, 2), as large as the images, borders repeated outside.

    Only the columns are padded in memory; rows above and below the image are the border row again.
    """
    batch, views, height, width, channels = images.shape
    left, right = (images[..., column, None, :].expand(-1, -1, -1, pixels, -1) for column in (0, -1))
    padded = torch.cat([left, images, right], 3)
    image = torch.arange(batch * views, device=images.device).view(batch, views, 1)
    row = (offset[..., 1:] + torch.arange(height, device=images.device)).clamp(0, height - 1)
    start = ((image * height + row) * padded.shape[3] + offset[..., :1] + pixels) * channels
    return _runs(padded, start, width).view(images.shape)


def _runs(images: Tensor, start: Tensor, width: int) -> Tensor:
    """Runs of ``width`` pixels from given places in memory: rows of windows are gathered, not their pixels."""
    length = width * images.shape[-1]
    return images.flatten().unfold(0, length, 1).index_select(0, start.flatten())  # a view, whose rows overlap
