"""The original's formulation of Keypoint3D's network: the plain baseline of the benchmark.

Chen, Abbeel and Pathak (ICML 2021, code of ``keypoint_net`` with ``-i``) stack all views on the channels and give each
its own weights by grouped convolutions, in float32 and torch's standard layout; the error of the drawn views is a chain
of operations on whole batches. Here the same is done with the weights of our own per-view networks, so that both
compute the same numbers.
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig
from kp3d_rl.losses import reconstruction_loss
from kp3d_rl.reconstruction import FOREGROUND, KeypointDecoder

ORIGINAL = Keypoint3DConfig(
    keypoints=32,
    layers="paper",
    decoder_width=64,
    view_weights="per_view",
    depth="map",
    depth_trust=1.0,
    decoded_views=0,
)
"""Sizes of the original: K = 32, 16 filters, stride 8, a network per view, all views drawn."""


def use_original_formulation(encoder: Keypoint3D, decoder: KeypointDecoder) -> None:
    """Have an encoder and its decoder compute as the original does, from the weights that they have.

    :param encoder: with a network per view.
    :param decoder: of that encoder.
    """
    encoder._heat_logits_and_features = types.MethodType(_heat_logits_and_features, encoder)  # type: ignore[method-assign]
    decoder.layers = types.MethodType(_layers, decoder)  # type: ignore[method-assign]
    decoder.error = types.MethodType(_error, decoder)  # type: ignore[method-assign]


def _heat_logits_and_features(encoder: Keypoint3D, images: Tensor) -> tuple[Tensor, Tensor]:
    views = encoder.num_views
    stacked = images.contiguous().unflatten(0, (-1, views)).flatten(1, 2)
    for layers in zip(*(network.trunk for network in encoder.views), strict=True):
        stacked = torch.relu(stacked) if isinstance(layers[0], nn.ReLU) else _grouped(layers, stacked)
    heat = _grouped([network.head for network in encoder.views], stacked)
    return heat.unflatten(1, (views, -1)), stacked.unflatten(1, (views, -1))


def _layers(decoder: KeypointDecoder, maps: Tensor, views: Tensor) -> Tensor:
    networks = [decoder.views[view] for view in views.tolist()]
    stacked = torch.relu(_grouped([network.blend for network in networks], maps.flatten(1, 2)))
    last = len(networks[0].upsample) - 1
    for number in range(last + 1):
        size = [networks[0]._size_before(number, pixels) for pixels in (decoder.height, decoder.width)]
        stacked = _grouped([network.upsample[number] for network in networks], stacked, size)
        if number < last:
            stacked = torch.relu(stacked)
    return stacked.unflatten(1, (len(networks), -1))


def _error(
    decoder: KeypointDecoder, maps: Tensor, images: Tensor, views: Tensor, foreground: Tensor | None = None
) -> Tensor:
    target, background = images.float() / 255.0, decoder.background[views]
    seen = (target - background).abs().amax(-3) > FOREGROUND
    relevance = 1.0 if foreground is None or decoder.hull is None else foreground
    weights = torch.where(seen, decoder.pixel_weights[views] * relevance, 1.0)
    return reconstruction_loss(decoder.draw(maps, views), target, weights)


def _grouped(layers: Sequence[nn.Module], stacked: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """The same layer of every view at once: (B, V C, h, w) to (B, V D, h', w')."""
    first = layers[0]
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    if not isinstance(first, nn.ConvTranspose2d):
        return nn.functional.conv2d(stacked, weight, bias, first.stride, first.padding, groups=len(layers))
    arguments = (list(first.stride), list(first.padding), list(first.kernel_size))
    extra = first._output_padding(stacked, list(size or ()), *arguments, 2)
    return nn.functional.conv_transpose2d(stacked, weight, bias, first.stride, first.padding, extra, len(layers))
