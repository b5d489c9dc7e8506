"""The encoder and the decoder: skeleton maps to points in space, and points to skeleton maps.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kp3d_rl.geometry_aware.skeleton import Skeleton, skeleton_maps
from kp3d_rl.networks import Conv2d, ConvTranspose2d, GroupNorm, Precision, convolve_in
from kp3d_rl.options import OptionError, bounded, check_options

_GROUPS = 8
_HALVINGS = 4


@dataclass(frozen=True)
class GeometryAwareNetworkConfig:
    """What a network is.

    :param points: M, of the latent set.
    :param width: filters of the first layer, a multiple of 8; the second has twice, the two further ones four times as
        many.
    :param size: pixels per side of the maps, a multiple of 16.
    :param thickness: of a limb's line, pixels.
    :param soft: maps have soft edges; the paper's are 0 or 1.
    :param shared: one network draws both ways; otherwise there are two, as in the paper. Pairs are drawn at random, so
        both learn the same, and one learns it in half the steps.
    :param precision: of the convolutions; "auto" takes bfloat16 where it is faster.
    """

    points: int = bounded(128, least=1, most=4096)
    width: int = bounded(32, least=8, most=512)
    size: int = bounded(32, least=16, most=512)
    thickness: float = bounded(3.0, above=0, most=64)
    soft: bool = True
    shared: bool = True
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_options(self, "network")
        if self.width % _GROUPS:
            raise OptionError("network", "width", f"must be a multiple of {_GROUPS}, got {self.width}")
        if self.size % 2**_HALVINGS:
            raise OptionError("network", "size", f"must be a multiple of {2**_HALVINGS}, got {self.size}")


class GeometryAwareNetwork(nn.Module):
    """Maps of one view to M points in the camera's frame, and such points to the maps: nothing goes past the points.

    :param skeleton: that maps are of.
    :param config: of the network.
    """

    def __init__(self, skeleton: Skeleton, config: GeometryAwareNetworkConfig | None = None) -> None:
        super().__init__()
        self.skeleton = skeleton
        self.config = GeometryAwareNetworkConfig() if config is None else config
        width, cells = self.config.width, self.config.size // 2**_HALVINGS
        filters = [width * min(2**level, 4) for level in range(_HALVINGS)]
        channels = [len(skeleton.limbs), *filters]
        self.down = nn.ModuleList(
            _normed(Conv2d(before, after, 4, 2, 1), after) for before, after in zip(channels, filters, strict=False)
        )
        self.to_points = Conv2d(filters[-1], 3 * self.config.points, cells)
        self.from_points = ConvTranspose2d(3 * self.config.points, filters[-1], cells)
        self.start = _normed(nn.Identity(), filters[-1])
        back = filters[::-1]
        self.up = nn.ModuleList(
            ConvTranspose2d(before, after, 4, 2, 1) for before, after in zip(back, back[1:], strict=False)
        )
        self.norms = nn.ModuleList(_normed(nn.Identity(), after) for after in back[1:])
        self.head = ConvTranspose2d(width, len(skeleton.limbs), 4, 2, 1)

    def encode(self, maps: Tensor) -> Tensor:
        """Maps (B, L, size, size) to points (B, M, 3) in the camera's frame."""
        features = 2.0 * maps.contiguous(memory_format=torch.channels_last) - 1.0
        with convolve_in(self.config.precision, maps.device):
            for layer in self.down:
                features = layer(features)
            points = self.to_points(features)
        return points.float().flatten(1).unflatten(1, (-1, 3))

    def decode(self, points: Tensor) -> Tensor:
        """Points (B, M, 3) in a camera's frame to maps (B, L, size, size), about 0 to 1."""
        cells = self.config.size // 2**_HALVINGS
        features = points.flatten(1)[:, :, None, None]
        with convolve_in(self.config.precision, points.device):
            features = self.start(self.from_points(features, (cells, cells)))
            for layer, norm in zip(self.up, self.norms, strict=True):
                side = 2 * features.shape[-1]
                features = norm(layer(features, (side, side)))
            maps = self.head(features, (self.config.size, self.config.size))
        return maps.float() + 0.0

    def maps(self, uv: Tensor) -> Tensor:
        """What the network sees of skeletons (..., J, 2) pixels: (..., L, size, size)."""
        config = self.config
        return skeleton_maps(uv, self.skeleton.limbs, config.size, config.thickness, config.soft)

    @torch.no_grad()
    def codes(self, uv: Tensor, batch: int = 256) -> Tensor:
        """Points of many skeletons.

        :param uv: (N, J, 2) pixels.
        :param batch: of how many at once.
        :return: (N, M, 3), on the CPU.
        """
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        found = [self.encode(self.maps(part.to(device))).cpu() for part in uv.split(batch)]
        self.train(was_training)
        return torch.cat(found) if found else torch.empty(0, self.config.points, 3)


def turned(points: Tensor, rotation: Tensor) -> Tensor:
    """Points as another camera has them: the plain matrix product of the paper.

    :param points: (..., M, 3).
    :param rotation: (..., 3, 3), from this camera's frame to the other's.
    """
    return points @ rotation.mT


def _normed(layer: nn.Module, filters: int) -> nn.Sequential:
    return nn.Sequential(layer, GroupNorm(_GROUPS, filters), nn.LeakyReLU(0.1))
