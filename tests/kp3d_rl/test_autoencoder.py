"""The plain autoencoder: it learns the dot world, and is as wide as it is said to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from kp3d_rl.autoencoder import Autoencoder, train_autoencoder
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig
from kp3d_rl.metrics import constant_probe, ridge_probe
from tests.dotworld import dot_frames, dot_scene

SMALL = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8)


def build(config: Keypoint3DConfig = SMALL, latent: int = 16) -> Autoencoder:
    torch.manual_seed(0)
    scene = dot_scene()
    return Autoencoder(Keypoint3D(config, scene.rig, scene.workspace), latent, scene.background_tensor())


@torch.no_grad()
def error(autoencoder: Autoencoder, images: torch.Tensor) -> float:
    drawn = autoencoder(autoencoder.encode(images), torch.arange(3))
    return float(((drawn - images.permute(0, 1, 4, 2, 3) / 255) ** 2).mean())


def block_frames(count: int) -> tuple[torch.Tensor, np.ndarray]:
    """A white block of 10 pixels that stands elsewhere in each frame; a dot is too small for a plain autoencoder."""
    places = np.random.default_rng(0).integers(0, 22, (count, 3))
    images = dot_scene().background_tensor().expand(count, -1, -1, -1, -1).clone()
    for image, (row, column, _) in zip(images, places, strict=True):
        image[:, row : row + 10, column : column + 10] = 255
    return images, places * [1.0, 1.0, 0.0]


def test_it_reconstructs_what_is_big_and_its_latent_knows_the_place() -> None:
    frames, dots = block_frames(400)
    unseen = frames[300:]
    config = dataclasses.replace(SMALL, keypoints=8, width=8, decoder_width=16, decoded_views=0)
    autoencoder, told = build(config), []
    before = error(autoencoder, unseen)
    train_autoencoder(autoencoder, frames[:300], 400, 8, 2e-3, on_step=lambda done, total: told.append((done, total)))
    mean_image = frames[:300].float().mean(0) / 255
    baseline = float(((unseen / 255 - mean_image) ** 2).mean())
    assert error(autoencoder, unseen) < min(before, 0.5 * baseline)
    assert told[0] == (1, 400) and told[-1] == (400, 400)
    with torch.no_grad():
        latent = autoencoder.encode(frames)
    targets = dots.reshape(20, 20, 1, 3)
    assert ridge_probe(latent.reshape(20, 20, -1), targets)[0] < 0.5 * constant_probe(targets)[0]


@pytest.mark.parametrize("view_weights", ["shared", "per_view"])
@pytest.mark.parametrize("decoded_views", [0, 1])
def test_every_part_is_trained_whatever_the_options(view_weights: str, decoded_views: int) -> None:
    config = dataclasses.replace(SMALL, view_weights=view_weights, decoded_views=decoded_views)
    autoencoder = build(config, latent=12)
    before = {name: value.clone() for name, value in autoencoder.named_parameters()}
    frames, _ = dot_frames(dot_scene(), 8)
    train_autoencoder(autoencoder, frames, 8, 4)
    assert autoencoder.encode(frames).shape == (8, 12)
    assert len(autoencoder.trunks) == (1 if view_weights == "shared" else 3)
    same = [name for name, value in autoencoder.named_parameters() if torch.equal(before[name], value)]
    assert not same


def test_the_same_seed_gives_the_same_weights() -> None:
    frames, _ = dot_frames(dot_scene(), 16)
    weights = []
    for seed in (0, 0, 1):
        autoencoder = build(dataclasses.replace(SMALL, decoded_views=0))
        train_autoencoder(autoencoder, frames, 2, 4, seed=seed)
        weights.append(autoencoder.to_latent.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_its_convolutions_are_as_wide_as_the_keypoint_encoders() -> None:
    autoencoder, scene = build(), dot_scene()
    encoder = Keypoint3D(SMALL, scene.rig, scene.workspace)
    trunk = encoder.views[0].trunk.state_dict()
    assert {k: v.shape for k, v in trunk.items()} == {k: v.shape for k, v in autoencoder.trunks[0].state_dict().items()}
