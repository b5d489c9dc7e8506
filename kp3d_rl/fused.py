"""Steps whose gradients are written out by hand.

On a CPU these steps cost memory traffic, not arithmetic: as a chain of autograd operations they pass over the same
megabytes forty times, half of them in another memory layout than their neighbours', and take longer than all
convolutions together. Written out they pass over them a few times. Each is tested against the chain that it replaces.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED = 1 << 18
"""Numbers that are worked on at a time on a CPU, of which a second-level cache holds some copies."""


def attend(heat: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """What each keypoint attends to in a view, and the mean over the view.

    :param heat: (B, K, h, w) heat maps, summing to 1.
    :param features: (B, C, h, w), fastest where they are channels-last.
    :return: (B, K, C) and (B, C).
    """
    with torch.autocast(features.device.type, enabled=False):  # it would know nothing of the written-out gradient
        return _Attend.apply(heat.flatten(2).to(features.dtype), features.flatten(2).mT)


def add_bias(images: Tensor, bias: Tensor) -> Tensor:
    """Add one number to each channel.

    :param images: (B, C, H, W), fastest where they are channels-last; may be overwritten.
    :param bias: (C,).
    """
    if not images.is_contiguous(memory_format=torch.channels_last):
        return images + bias.to(images.dtype)[:, None, None]
    return _AddBias.apply(images, bias)


def layered_error(logits: Tensor, background: Tensor, images: Tensor, weights: Tensor, threshold: float) -> Tensor:
    """Weighted mean squared error of a foreground drawn over a background.

    The foreground's colour c and opacity o are sigmoids of the logits; the view is ``o c + (1 - o) background``. Where
    the true view differs from the background, errors count by the weights, elsewhere by 1.

    :param logits: (B, n, 4, H, W) of colour (3) and opacity (1).
    :param background: (n, 3, H, W) in [0, 1].
    :param images: (B, n, 3, H, W) uint8, the true views.
    :param weights: (n, H, W) or (B, n, H, W) what the error of a pixel that shows something counts for.
    :param threshold: difference from the background, in any channel, from which on a pixel shows something.
    :return: scalar.
    """
    return _LayeredError.apply(logits, background, images, weights, threshold)


def seen(images: Tensor, background: Tensor, threshold: float) -> Tensor:
    """Where views differ from the background.

    :param images: (..., 3, H, W) in [0, 1].
    :param background: (..., 3, H, W) in [0, 1].
    :param threshold: as in :func:`layered_error`.
    :return: (..., H, W) bool.
    """
    return (images - background).abs_().amax(-3) > threshold


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heat: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(heat, features)
        return heat @ features, features.mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, attended: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        heat, features = ctx.saved_tensors
        spread_out = (mean / features.shape[1]).unsqueeze(1)
        return attended @ features.mT, torch.baddbmm(spread_out, heat.mT, attended)


class _AddBias(torch.autograd.Function):
    # As rows of many pixels: rows of a few channels are too short for vector instructions.

    @staticmethod
    def forward(ctx: Any, images: Tensor, bias: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).view(batch, height * width * channels)
        rows += bias.to(images.dtype).repeat(height * width)
        ctx.mark_dirty(images)
        ctx.dtype = bias.dtype
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = gradient.shape
        rows = gradient.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        return gradient, rows.sum(0, dtype=ctx.dtype).view(width, channels).sum(0)


class _LayeredError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, background: Tensor, images: Tensor, weights: Tensor, threshold: float
    ) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=torch.float32)
        weights = weights.expand(len(images), *weights.shape[-3:])
        for rows in _chunks(logits):
            target = images[rows].float().mul_(1.0 / 255.0)
            counted = torch.where(seen(target, background, threshold), weights[rows], 1.0)
            part = None if gradient is None else gradient[rows]
            total += _squared_error(logits[rows], background, target, counted, 2.0 / images.numel(), part)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total / images.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None


def _squared_error(
    logits: Tensor, background: Tensor, target: Tensor, weights: Tensor, scale: float, gradient: Tensor | None
) -> Tensor:
    """The sum of weighed squared errors; where asked for, half its gradient times ``scale`` goes to ``gradient``."""
    # Planes one after the other: slices of them are whole blocks of memory.
    layers = torch.sigmoid(logits.float().contiguous())
    colour, opacity = layers[:, :, :3], layers[:, :, 3:]
    contrast = colour - background
    error = torch.addcmul(background - target, opacity, contrast)
    weighed = error * weights.unsqueeze(2)
    total = torch.dot(weighed.flatten(), error.flatten())
    if gradient is not None:
        slope = torch.addcmul(layers, layers, layers, value=-1.0).mul_(scale)  # the sigmoid's, s (1 - s)
        slope[:, :, 3:] *= (weighed * contrast).sum(2, keepdim=True)
        slope[:, :, :3] *= weighed.mul_(opacity)
        gradient.copy_(slope)
    return total


def _chunks(values: Tensor) -> list[slice]:
    """Rows to be worked on at a time: on a CPU as many as its cache holds, so that passes over them cost little."""
    at_once = len(values) if values.device.type != "cpu" else CACHED // max(1, math.prod(values.shape[1:]))
    rows = max(1, at_once)
    return [slice(start, start + rows) for start in range(0, len(values), rows)]
