"""Convolutional networks: what turns a view into heat maps, and Gaussian maps back into a view."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kp3d_rl.fused import add_bias, attend
from kp3d_rl.heatmaps import CellGrid, expected_value

Layer = tuple[int, int, int]
"""Kernel, stride and padding of a convolution."""

FAST_LAYERS: tuple[Layer, ...] = ((4, 2, 1), (4, 2, 1), (3, 1, 1))
"""Stride 4 with padding: every pixel of the image lies in a heat-map cell."""

PAPER_LAYERS: tuple[Layer, ...] = ((4, 2, 0), (3, 2, 0), (4, 2, 0))
"""The original's: 108 -> 53 -> 26 -> 12, stride 8, no padding."""

LAYERS: dict[str, tuple[Layer, ...]] = {"fast": FAST_LAYERS, "paper": PAPER_LAYERS}


Precision = Literal["auto", "float32", "bfloat16"]
DepthKind = Literal["triangulated", "attended", "map"]


@functools.cache
def computes_in_bfloat16(device: str) -> bool:
    """Whether convolutions are faster in bfloat16 on a kind of device than in float32.

    On a CPU they were measured to be with tiles (AMX), and 1.2 to 2 times with AVX512-BF16 on AMD's; on Intel's without
    tiles they are 1.1 to 1.8 times slower than in float32, though the instructions are there.

    :param device: "cpu" or "cuda".
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    tiles, vectors = (  # not public: absent means no
        getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16")
    )
    return tiles or (vectors and _cpu_vendor() == "AuthenticAMD")


def _cpu_vendor() -> str:
    """As Linux names it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = (line.partition(":") for line in file if line.startswith("vendor_id"))
            return next((value.strip() for _, _, value in lines), "")
    except OSError:
        return ""


def convolve_in(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which convolutions run in a precision; weights, losses and geometry stay float32.

    :param precision: "auto" takes bfloat16 where it is faster: up to twice (:func:`computes_in_bfloat16`).
    :param device: of the tensors.
    """
    half = computes_in_bfloat16(device.type) if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def output_size(layers: Sequence[Layer], size: int) -> int:
    """Cells per side that a stack of convolutions makes of ``size`` pixels.

    :param layers: kernel, stride and padding of each convolution.
    :param size: pixels per side.
    """
    return CellGrid.from_layers(layers, size).cells


def grids(layers: Sequence[Layer], height: int, width: int) -> tuple[CellGrid, CellGrid]:
    """Where the heat-map cells of a stack of convolutions lie in the image.

    :param layers: kernel, stride and padding of each convolution.
    :param height: image rows in pixels.
    :param width: image columns in pixels.
    :return: the grid of the rows and that of the columns, pixels.
    :raises ValueError: where the image is too small for the stack.
    """
    try:
        rows, columns = CellGrid.from_layers(layers, height), CellGrid.from_layers(layers, width)
    except ValueError:  # not even one cell
        rows = columns = CellGrid(0, 0.0, 0.0)
    if min(rows.cells, columns.cells) < 4:
        raise ValueError(f"image of {height} x {width} pixels leaves fewer than 4 heat-map cells per side")
    return rows, columns


def to_input(images: Tensor) -> Tensor:
    """Images (B, H, W, 3) uint8 as networks take them: (B, 3, H, W) in [-1, 1], in channels-last memory."""
    return images.permute(0, 3, 1, 2).float().mul_(2.0 / 255.0).sub_(1.0)


class Conv2d(nn.Conv2d):
    """A convolution that hands its weights over in channels-last order, as the images are.

    With weights in another order than the images, some kernels of oneDNN are ten times slower. The parameters keep
    torch's own order, which initialisers and files expect; they are small, and turning them over costs nothing.
    """

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(images, weight.contiguous(memory_format=torch.channels_last), bias)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32, always: on a CPU the kernel for bfloat16 was measured 7 times slower."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to the same, float32."""
        return super().forward(features.float())


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution to a given size, weights in channels-last order as in :class:`Conv2d`.

    The bias is added by itself: with one, oneDNN falls back to a kernel that was measured up to twenty times slower.
    """

    def forward(self, images: Tensor, output_size: Sequence[int]) -> Tensor:
        """Run it.

        :param images: (B, C, h, w).
        :param output_size: rows and columns of what comes out.
        """
        assert isinstance(self.padding, tuple)
        padding = self._output_padding(
            images, list(output_size), list(self.stride), list(self.padding), list(self.kernel_size), 2
        )
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        assert self.bias is not None
        return add_bias(
            nn.functional.conv_transpose2d(images, weight, None, self.stride, self.padding, padding), self.bias
        )


class ViewEncoder(nn.Module):
    """Heat logits of K keypoints from one view, and what their depths are told from.

    :param keypoints: K.
    :param width: filters of the first layer; each strided layer doubles them.
    :param layers: kernel, stride and padding of each convolution.
    :param depth: "triangulated" or "attended", by :class:`AttendedDepth` with or without what the other views say; or
        "map", a map of depth logits for each keypoint.
    """

    def __init__(
        self,
        keypoints: int,
        width: int = 16,
        layers: Sequence[Layer] = FAST_LAYERS,
        depth: DepthKind = "triangulated",
    ) -> None:
        super().__init__()
        self.keypoints = keypoints
        stack: list[nn.Module] = []
        channels, filters = 3, width
        for number, (kernel, stride, padding) in enumerate(layers):
            if stride > 1 and number > 0:
                filters *= 2
            stack += [Conv2d(channels, filters, kernel, stride, padding), nn.ReLU()]
            channels = filters
        self.trunk = nn.Sequential(*stack)
        self.head = Conv2d(channels, keypoints, 1)
        self.depth_kind = depth
        self.depth = Conv2d(channels, keypoints, 1) if depth == "map" else AttendedDepth(keypoints, channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions.

        :param images: (B, 3, H, W) in [-1, 1].
        :return: heat logits (B, K, h, w), and features (B, C, h, w) for :meth:`relative_depth`.
        """
        features = self.trunk(images)
        return self.head(features), features

    def relative_depth(self, features: Tensor, heat: Tensor, position: Tensor, triangulated: Tensor) -> Tensor:
        """Depth of each keypoint between the nearest and the farthest that is possible.

        :param features: (B, C, h, w), what :meth:`forward` gave.
        :param heat: (B, K, h, w) heat maps, summing to 1.
        :param position: (B, K, 2) keypoints in the image, -1 to 1.
        :param triangulated: (B, K) in [0, 1], the relative depth at which the rays of all views meet.
        :return: (B, K) in [0, 1].
        """
        if isinstance(self.depth, AttendedDepth):
            start = triangulated if self.depth_kind == "triangulated" else torch.full_like(triangulated, 0.5)
            return torch.sigmoid(torch.logit(start, eps=0.02) + self.depth(features, heat, position))
        return expected_value(heat, torch.sigmoid(self.depth(features)))


class AttendedDepth(nn.Module):
    """Correction to a depth logit, from the features that a keypoint attends to, the whole view's, and its position.

    How far away a thing is shows in how large it looks, which is no linear function of the features in a cell; and an
    expectation over a depth map (the original's way) is linear in them. Every keypoint has a small network of its own.

    :param keypoints: K.
    :param channels: C.
    :param hidden: units of each keypoint's hidden layer.
    """

    def __init__(self, keypoints: int, channels: int, hidden: int = 32) -> None:
        super().__init__()
        size = 2 * channels + 2
        self.inner = nn.Parameter((torch.rand(keypoints, size, hidden) * 2.0 - 1.0) * (3.0 / size) ** 0.5)
        self.inner_bias = nn.Parameter(torch.zeros(keypoints, hidden))
        self.outer = nn.Parameter(torch.zeros(keypoints, hidden))  # no correction at the start
        self.outer_bias = nn.Parameter(torch.zeros(keypoints))

    def forward(self, features: Tensor, heat: Tensor, position: Tensor) -> Tensor:
        """Run the networks.

        :param features, heat, position: as for :meth:`ViewEncoder.relative_depth`.

        :return: (B, K).
        """
        attended, around = attend(heat, features)
        said = torch.cat([attended, around.unsqueeze(1).expand_as(attended), position], -1)
        units = torch.relu(torch.einsum("bki,kih->bkh", said, self.inner) + self.inner_bias)
        return (units * self.outer).sum(-1) + self.outer_bias


class ViewDecoder(nn.Module):
    """A foreground layer, colour and opacity, drawn from K Gaussian maps.

    :param keypoints: K.
    :param width: filters at the resolution of the heat maps.
    :param layers: the encoder's layers, undone from last to first.
    :param background_logit: opacity logit at the start; a low one starts from the plain background.
    """

    def __init__(
        self, keypoints: int, width: int = 32, layers: Sequence[Layer] = FAST_LAYERS, background_logit: float = -2.0
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.blend = Conv2d(keypoints, width, 3, padding=1)
        strided = [layer for layer in reversed(self.layers) if layer[1] > 1]
        channels = [width, *(max(8, width // 2 ** (n + 1)) for n in range(len(strided) - 1)), 4]
        self.upsample = nn.ModuleList(
            ConvTranspose2d(channels[n], channels[n + 1], *layer) for n, layer in enumerate(strided)
        )
        with torch.no_grad():
            self.upsample[-1].bias[3] = background_logit  # type: ignore[index]

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Draw the foreground.

        :param maps: (B, K, h, w) Gaussian maps.
        :param size: rows and columns of the image.
        :return: (B, 4, H, W) logits of colour (3) and opacity (1).
        """
        features = torch.relu(self.blend(maps.contiguous(memory_format=torch.channels_last)))
        for number, layer in enumerate(self.upsample):
            # The exact size that the encoder had here: what a stride rounded away comes back as border pixels.
            rows, columns = (self._size_before(number, pixels) for pixels in size)
            features = layer(features, output_size=(rows, columns))
            if number < len(self.upsample) - 1:
                features = torch.relu(features)
        return features

    def _size_before(self, number: int, pixels: int) -> int:
        """Cells per side at the input of the ``number``-th strided layer from the end."""
        positions = [p for p, layer in enumerate(self.layers) if layer[1] > 1]
        return output_size(self.layers[: positions[-1 - number]], pixels)
