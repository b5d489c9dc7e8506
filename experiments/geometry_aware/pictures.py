"""Skeleton maps as pictures: coloured, and views that were drawn beside the true ones."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from envs.scenes.human import LIMBS, SIDES
from kp3d_rl.drawing import INK, palette, resize, sheet
from kp3d_rl.geometry_aware.network import GeometryAwareNetwork, turned
from kp3d_rl.geometry_aware.skeleton import SkeletonViews, relative_rotation
from kp3d_rl.storage.files import write_whole

SHOWN = 8
"""Poses in the picture."""
_PIXELS = 128


def coloured(maps: Tensor) -> np.ndarray:
    """Maps as a picture: limbs in the middle, on the right and on the left in a colour each, on a dark ground.

    :param maps: (L, size, size), about 0 to 1.
    :return: (size, size, 3) uint8.
    """
    colours = palette(3)[[SIDES[second] for _, second in LIMBS]].astype(float)
    strength = maps.clamp(0.0, 1.0).numpy()
    picture = np.full((*strength.shape[1:], 3), INK, float)
    for limb, colour in zip(strength, colours, strict=True):
        picture += limb[..., None] * (colour - picture)
    return picture.round().astype(np.uint8)


def picture(network: GeometryAwareNetwork, source: SkeletonViews, targets: SkeletonViews) -> np.ndarray:
    """Poses spread over all: what is seen, and for two other cameras what is drawn from it above what is true.

    :param network: that draws.
    :param source: N poses in one view each.
    :param targets: the same poses in C views.
    """
    shown = torch.linspace(0, len(source) - 1, min(SHOWN, len(source))).round().long()
    cameras = sorted({0, targets.uv.shape[1] // 2})
    source, targets = source.select(shown), targets.select(shown)
    rows, titles = [strip(network.maps(source.uv[:, 0]))], ["what one held-out camera sees"]
    for number, camera in enumerate(cameras, 1):
        rows += [
            strip(drawn(network, source, targets.rotations[:, camera])),
            strip(network.maps(targets.uv[:, camera])),
        ]
        titles += [f"drawn from it for another camera, {number}", "what that camera sees"]
    return sheet(rows, titles)


@torch.no_grad()
def drawn(network: GeometryAwareNetwork, source: SkeletonViews, rotations: Tensor) -> Tensor:
    """Maps as other cameras would see them.

    :param network: that draws.
    :param source: N poses in one view each.
    :param rotations: (N, 3, 3) world-from-camera of the other cameras.
    :return: (N, L, size, size), on the CPU.
    """
    device = next(network.parameters()).device
    points = turned(network.codes(source.uv[:, 0]), relative_rotation(source.rotations[:, 0], rotations))
    return torch.cat([network.decode(part.to(device)).cpu() for part in points.split(256)])


def strip(maps: Tensor) -> list[np.ndarray]:
    """Maps (N, L, size, size) as N pictures."""
    return [resize(coloured(one), _PIXELS, smooth=False) for one in maps.cpu()]


def write_picture(path: Path, network: GeometryAwareNetwork, source: SkeletonViews, targets: SkeletonViews) -> None:
    """Write :func:`picture`."""
    write_whole(path, iio.imwrite("<bytes>", picture(network, source, targets), extension=".png"))
