"""The detector: confidence maps of K keypoints in one image, and where their peaks are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kp3d_rl.augmentation import AffineChange
from kp3d_rl.heatmaps import CellGrid, gaussian_maps
from kp3d_rl.networks import Conv2d, GroupNorm, Layer, Precision, convolve_in, to_input
from kp3d_rl.options import bounded, check_options

STEM: tuple[Layer, ...] = ((4, 2, 1), (4, 2, 1))
"""Kernel, stride and padding of what comes before the maps: a map's cells are 4 pixels apart."""
LEAST_SIDE = 32
"""Pixels of the smallest image: three more strides must leave something."""
_GROUPS = 8


@dataclass(frozen=True)
class DetectorConfig:
    """What a detector is.

    :param width: filters of the first layer, a multiple of 8; deeper ones have twice and four times as many.
    :param sigma: standard deviation of the Gaussians that maps are trained to be, pixels.
    :param precision: of the convolutions; "auto" takes bfloat16 where it is faster.
    """

    width: int = bounded(24, least=8, most=512)
    sigma: float = bounded(3.0, least=1, most=100)
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_options(self, "detector")
        if self.width % _GROUPS:
            raise ValueError(f"detector width must be a multiple of {_GROUPS}, got {self.width}")


class KeypointDetector(nn.Module):
    """An encoder and decoder with connections between (U-Net), of which the maps have a quarter of the image's side.

    A map says how likely its keypoint is in each of its cells; with what is left it is nowhere in the image. It is
    trained as a classification of cells (He et al., "Mask R-CNN", 2017, section 3.1) with a small Gaussian about the
    keypoint as the right answer; regression of confidence maps, the paper's way, learnt far more slowly here.

    :param keypoints: K.
    :param config: of the network.
    """

    def __init__(self, keypoints: int, config: DetectorConfig | None = None) -> None:
        super().__init__()
        self.keypoints, self.config = keypoints, DetectorConfig() if config is None else config
        narrow, middle, wide = (n * self.config.width for n in (1, 2, 4))
        self.stem = nn.Sequential(_convolution(3, narrow, *STEM[0]), _convolution(narrow, middle, *STEM[1]))
        self.down = nn.ModuleList(_convolution(channels, wide, 4, 2, 1) for channels in (middle, wide, wide))
        self.deep = nn.ModuleList(Residual(wide) for _ in range(3))
        self.up = nn.ModuleList(_convolution(wide, wide, 3, 1, 1) for _ in range(2))
        self.narrow = _convolution(wide, middle, 3, 1, 1)
        self.fine = Residual(middle)
        self.head = Conv2d(middle, keypoints, 1)
        nn.init.zeros_(self.head.weight)  # anywhere alike at the start
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.nowhere = nn.Parameter(torch.zeros(keypoints))

    def forward(self, images: Tensor) -> Tensor:
        """Confidence maps: how likely each keypoint is in each cell.

        :param images: (B, 3, H, W) in [-1, 1].
        :return: (B, K, h, w), which sum to at most 1.
        """
        logits, nowhere = self.logits(images)
        return torch.cat([logits.flatten(2), nowhere], -1).softmax(-1)[..., :-1].view_as(logits)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the network.

        :param images: (B, 3, H, W) in [-1, 1].
        :return: logits of the cells (B, K, h, w) and of being nowhere (B, K, 1), float32.
        """
        with convolve_in(self.config.precision, images.device):
            levels = [self.stem(images)]
            for down, deep in zip(self.down, self.deep, strict=True):
                levels.append(deep(down(levels[-1])))
            features = levels.pop()
            for up in self.up:
                skip = levels.pop()
                features = skip + up(_enlarge(features, skip))
            fine = levels.pop()
            features = self.fine(fine + _enlarge(self.narrow(features), fine))
        return self.head(features.float()), self.nowhere.expand(len(images), -1).unsqueeze(-1)

    def grids(self, height: int, width: int) -> tuple[CellGrid, CellGrid]:
        """Where the cells of the maps lie in images of so many pixels: rows and columns.

        :raises ValueError: for images that are too small.
        """
        if min(height, width) < LEAST_SIDE:
            raise ValueError(f"a detector needs images of at least {LEAST_SIDE} x {LEAST_SIDE}, got {height} x {width}")
        return CellGrid.from_layers(STEM, height), CellGrid.from_layers(STEM, width)

    def targets(self, uv: Tensor, height: int, width: int) -> Tensor:
        """The maps that keypoints should give.

        :param uv: (B, K, 2) pixels.
        :param height: rows of the images.
        :param width: columns.
        :return: (B, K, h, w), which sum to 1, or to 0 where the keypoint is not in the image.
        """
        sigma = torch.full(uv.shape[:-1], self.config.sigma, dtype=uv.dtype, device=uv.device)
        maps = gaussian_maps(uv, sigma, torch.ones_like(sigma), *self.grids(height, width))
        inside = ((uv >= 0) & (uv <= uv.new_tensor([width, height]))).all(-1)
        total = maps.sum((-2, -1), keepdim=True)
        return torch.where(inside[..., None, None], maps / total.clamp(min=1e-9), 0.0)

    @torch.no_grad()
    def detect(self, images: Tensor, batch: int = 64, turn: float = 0.0) -> tuple[Tensor, Tensor]:
        """Where the keypoints are, image by image.

        :param images: (N, H, W, 3) uint8.
        :param batch: of how many at once.
        :param turn: degrees by which each image is also seen turned, one way and the other, its map the mean of all
            three (test-time augmentation); 0 sees each once.
        :return: uv (N, K, 2) pixels, and confidences (N, K) from 0 to 1.
        """
        was_training = self.training
        self.eval()
        device, (height, width) = next(self.parameters()).device, images.shape[1:3]
        seen = (self._maps(to_input(part.to(device)), turn) for part in images.split(batch))
        found = [peaks(maps, *self.grids(height, width)) for maps in seen]
        self.train(was_training)
        uv, confidence = (torch.cat(parts) for parts in zip(*found, strict=True))
        return uv, confidence

    def _maps(self, images: Tensor, turn: float) -> Tensor:
        """The maps (B, K, h, w) of images (B, 3, H, W), seen as :meth:`detect` says."""
        maps = self(images)
        if not turn:
            return maps
        for angle in (turn, -turn):
            seen = turned(images, angle).contiguous(memory_format=torch.channels_last)
            maps = maps + turned(self(seen).contiguous(), -angle, beyond="zeros")
        return maps / 3


def turned(images: Tensor, degrees: float, beyond: str = "border") -> Tensor:
    """Images, or maps, turned about their middle, as large as before.

    :param images: (B, C, H, W).
    :param degrees: counterclockwise as one looks at them, rows downwards.
    :param beyond: what is beyond the border: "border" goes on with it, "zeros" is nothing.
    """
    return AffineChange.turn(len(images), degrees).images(images, beyond)


def peaks(maps: Tensor, grid_rows: CellGrid, grid_cols: CellGrid) -> tuple[Tensor, Tensor]:
    """The highest point of each map, between cells, and how much of the map is about it.

    Through a peak and its two neighbours goes one Gaussian, whose middle is that of the parabola through their
    logarithms (Zhang et al., "Distribution-Aware Coordinate Representation", 2020, along one axis at a time).

    :param maps: (..., h, w) confidences, which sum to at most 1.
    :return: uv (..., 2) pixels, and the confidence (...) that a keypoint is there, the sum over 3 x 3 cells about the
        peak: a map that is broader than it was taught to be is not sure; NaN where a map holds NaN.
    """
    rows, columns = maps.shape[-2:]
    at = maps.flatten(-2).argmax(-1)
    row, column = at // columns, at % columns
    near = nn.functional.avg_pool2d(maps.reshape(-1, 1, rows, columns), 3, 1, 1, divisor_override=1).view_as(maps)
    confidence = near.flatten(-2).gather(-1, at.unsqueeze(-1)).squeeze(-1)
    logs = maps.clamp(min=1e-12).log()
    offset_u = _between(logs, row, column, 0, 1)
    offset_v = _between(logs, row, column, 1, 0)
    u = grid_cols.offset + grid_cols.stride * (column + offset_u)
    v = grid_rows.offset + grid_rows.stride * (row + offset_v)
    return torch.stack([u, v], -1), confidence.clamp(0.0, 1.0)


def _between(logs: Tensor, row: Tensor, column: Tensor, down: int, right: int) -> Tensor:
    """How many cells the middle of the parabola is from the peak, -0.5 to 0.5; 0 at the border."""
    rows, columns = logs.shape[-2:]
    inside = (row >= down) & (row < rows - down) & (column >= right) & (column < columns - right)

    def value(step: int) -> Tensor:
        at = (row + step * down).clamp(0, rows - 1) * columns + (column + step * right).clamp(0, columns - 1)
        return logs.flatten(-2).gather(-1, at.unsqueeze(-1)).squeeze(-1)

    before, here, after = value(-1), value(0), value(1)
    bend = 2.0 * here - before - after
    offset = 0.5 * (after - before) / bend.clamp(min=1e-6)
    return torch.where(inside & (bend > 1e-6), offset.clamp(-0.5, 0.5), 0.0)


class Residual(nn.Module):
    """Two convolutions beside the identity.

    :param channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, 3, 1, 1)
        self.second = Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return torch.relu(features + self.second(self.first(features)))


def _convolution(channels: int, filters: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        Conv2d(channels, filters, kernel, stride, padding, bias=False), GroupNorm(_GROUPS, filters), nn.ReLU()
    )


def _enlarge(features: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(features, size=like.shape[-2:], mode="nearest")
