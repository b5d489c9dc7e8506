"""Random shifts of the views, whose geometry stays exact: a shift is a crop, and a crop is a change of intrinsics.

Source: Yarats, Kostrikov, Fergus, "Image Augmentation Is All You Need: Regularizing Deep Reinforcement Learning from
Pixels" (DrQ), ICLR 2021: pad by repeating the border, then crop back at a random place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_shift(images: Tensor, pixels: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Move every view of every sample by its own random number of pixels, up to ``pixels`` in each direction.

    :param images: (B, V, H, W, 3) uint8.
    :param pixels: padding on each side; 0 changes nothing.
    :param generator: of the images' device; None is torch's own.
    :return: shifted images (B, V, H, W, 3) uint8, and offsets (B, V, 2) float, the (left, top) of each window in its
        original image, whole pixels: original pixel = shifted pixel + offset.
        :meth:`kp3d_rl.keypoint3d.Keypoint3D.forward` takes both.
    :raises ValueError: for another shape or type, or a negative number of pixels.
    """
    if images.dtype != torch.uint8 or images.dim() != 5 or images.shape[-1] != 3:
        raise ValueError(f"images must be (B, V, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    if pixels < 0:
        raise ValueError(f"a random shift is of at least 0 pixels, got {pixels}")
    shape = (*images.shape[:2], 2)
    offset = torch.randint(-pixels, pixels + 1, shape, device=images.device, generator=generator)
    return (_windows(images, offset, pixels) if pixels else images), offset.float()


def _windows(images: Tensor, offset: Tensor, pixels: int) -> Tensor:
    """The images' windows at (left, top) ``offset`` (B, V, 2), as large as the images, borders repeated outside.

    Only the columns are padded in memory. In there a window's row is one run of bytes, so that what is gathered are
    rows, not pixels; rows above and below the image are the border row again.
    """
    batch, views, height, width, channels = images.shape
    left, right = (images[..., column, None, :].expand(-1, -1, -1, pixels, -1) for column in (0, -1))
    padded = torch.cat([left, images, right], 3)
    image = torch.arange(batch * views, device=images.device).view(batch, views, 1)
    row = (offset[..., 1:] + torch.arange(height, device=images.device)).clamp(0, height - 1)
    start = ((image * height + row) * padded.shape[3] + offset[..., :1] + pixels) * channels
    every_run = padded.flatten().unfold(0, width * channels, 1)  # a view; its rows overlap
    return every_run.index_select(0, start.flatten()).view(images.shape)
