"""Networks of KeypointNet: keypoints with depth, and which way an object faces, from one image.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kp3d_rl.heatmaps import CellGrid, expected_value, soft_argmax, softmax2d
from kp3d_rl.networks import Conv2d, GroupNorm, Layer, Precision, convolve_in, to_input
from kp3d_rl.options import OptionError, bounded, check_options

STEMS: dict[int, tuple[Layer, ...]] = {1: ((3, 1, 1),), 2: ((4, 2, 1),), 4: ((4, 2, 1), (4, 2, 1))}
"""Kernel, stride and padding of the first convolutions, by pixels between the cells of the maps."""
DILATIONS = (1, 1, 2, 4, 8, 16, 1, 2, 4, 8, 16, 1)
"""Of the 3 x 3 convolutions, in pixels of the image: each cell sees all of it, and its own place exactly."""
_GROUPS = 8
_SLOPE = 0.1
_END_ON = 0.05
"""Share of the image's width that front and back are apart in an image where the facing counts for 73 %."""


@dataclass(frozen=True)
class KeypointNetConfig:
    """What a network is.

    :param keypoints: K.
    :param width: filters of each layer, a multiple of 16; the orientation network has half as many.
    :param stride: pixels between the cells of the heat maps: 1 is the original's, 4 is an order of magnitude faster.
    :param precision: of the convolutions; "auto" takes bfloat16 where it is faster.
    """

    keypoints: int = bounded(10, least=3, most=256)
    width: int = bounded(64, least=16, most=1024)
    stride: int = bounded(1, least=1, most=4)
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_options(self, "network")
        if self.stride not in STEMS:
            raise OptionError("network", "stride", f"must be 1, 2 or 4, got {self.stride}")
        if self.width % (2 * _GROUPS):
            raise ValueError(f"network width must be a multiple of {2 * _GROUPS}, got {self.width}")


@dataclass(frozen=True)
class FoundKeypoints:
    """What the network finds in B images.

    :param uv: (B, K, 2) pixels.
    :param depth: (B, K) along the optical axis, relative to the distance of the object.
    :param heat: (B, K, h, w), each summing to 1.
    """

    uv: Tensor
    depth: Tensor
    heat: Tensor

    def on(self, device: torch.device | str) -> FoundKeypoints:
        """The same on a device."""
        return FoundKeypoints(self.uv.to(device), self.depth.to(device), self.heat.to(device))


class DilatedNetwork(nn.Module):
    """3 x 3 convolutions with growing dilations, which keep the resolution.

    :param channels: of the images.
    :param maps: that come out.
    :param width: filters of each layer.
    :param config: for stride and precision.
    """

    def __init__(self, channels: int, maps: int, width: int, config: KeypointNetConfig) -> None:
        super().__init__()
        self.config, self.layers = config, STEMS[config.stride]
        stem = [
            _block(channels if number == 0 else width, width, kernel, stride, padding)
            for number, (kernel, stride, padding) in enumerate(self.layers)
        ]
        steps = [max(1, dilation // config.stride) for dilation in DILATIONS]
        self.body = nn.Sequential(*stem, *(_block(width, width, 3, 1, step, step) for step in steps[1:]))
        self.head = Conv2d(width, maps, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, maps, h, w) float32."""
        with convolve_in(self.config.precision, images.device):
            features = self.body(images)
        return self.head(features.float())

    def grids(self, height: int, width: int) -> tuple[CellGrid, CellGrid]:
        """Where the cells of the maps lie in images of so many pixels: rows and columns."""
        return CellGrid.from_layers(self.layers, height), CellGrid.from_layers(self.layers, width)


class OrientationNetwork(nn.Module):
    """Finds where front and back of an object are in an image.

    :param config: of the network for keypoints; this one has half its width.
    """

    def __init__(self, config: KeypointNetConfig) -> None:
        super().__init__()
        self.network = DilatedNetwork(3, 2, config.width // 2, config)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to the pixels (B, 2, 2) of front and back."""
        return soft_argmax(softmax2d(self.network(images)), *self.network.grids(*images.shape[-2:]))


def faces_right(tips: Tensor) -> Tensor:
    """Whether an object's front is to the right of its back.

    :param tips: (..., 2, 2) pixels of front and back.
    :return: (...) bool.
    """
    return tips[..., 0, 0] > tips[..., 1, 0]


def rightness(tips: Tensor, width: int) -> Tensor:
    """How much an object's front is to the right of its back: near 0 or 1 but where it is seen from an end.

    There :func:`faces_right` is decided by a pixel, and so would be all that depends on it.

    :param tips: (..., 2, 2) pixels of front and back.
    :param width: columns of the image.
    :return: (...) from 0 to 1.
    """
    return torch.sigmoid((tips[..., 0, 0] - tips[..., 1, 0]) / (_END_ON * width))


class KeypointNet(nn.Module):
    """Finds keypoints and their depths in an image, told which way the object faces.

    It is told in two ways: as a fourth channel, the original's way; and each keypoint has maps of its own for objects
    that face right and for others. With the channel alone, cars, whose ends look alike, came to keypoints along the
    vertical axis, which say nothing of where they face.

    :param config: of the network.
    """

    def __init__(self, config: KeypointNetConfig | None = None) -> None:
        super().__init__()
        self.config = KeypointNetConfig() if config is None else config
        self.orientation = OrientationNetwork(self.config)
        self.network = DilatedNetwork(4, 4 * self.config.keypoints, self.config.width, self.config)

    def forward(self, images: Tensor, right: Tensor) -> FoundKeypoints:
        """Find them.

        :param images: (B, 3, H, W) in [-1, 1].
        :param right: (B,) from 0 to 1, how much the object faces right (:func:`rightness`).
        """
        right = right.to(images.dtype).view(-1, 1, 1, 1)
        flag = (2.0 * right - 1.0).expand(-1, 1, *images.shape[-2:])
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        stacked = torch.cat([images, flag], 1)
        maps = self.network(stacked if layout is None else stacked.contiguous(memory_format=layout))
        logits, depths = torch.lerp(*maps.chunk(2, 1), right).chunk(2, 1)
        heat = softmax2d(logits)
        return FoundKeypoints(
            soft_argmax(heat, *self.network.grids(*images.shape[-2:])), expected_value(heat, depths), heat
        )

    @torch.no_grad()
    def detect(self, images: Tensor, batch: int = 64) -> tuple[FoundKeypoints, Tensor]:
        """What is found in single images, with nothing but them to go by.

        :param images: (N, H, W, 3) uint8.
        :param batch: of how many at once.
        :return: the keypoints, and whether each object faces right (N,).
        """
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        parts = []
        for part in images.split(batch):
            seen = to_input(part.to(device))
            tips = self.orientation(seen)
            parts.append((self(seen, rightness(tips, seen.shape[-1])), faces_right(tips)))
        self.train(was_training)
        found = FoundKeypoints(
            *(torch.cat([getattr(one, name) for one, _ in parts]) for name in ("uv", "depth", "heat"))
        )
        return found, torch.cat([right for _, right in parts])


def _block(channels: int, filters: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> nn.Sequential:
    convolution = Conv2d(channels, filters, kernel, stride, padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, GroupNorm(_GROUPS, filters), nn.LeakyReLU(_SLOPE))
