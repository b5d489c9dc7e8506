"""What keypoints are worth on episodes: probes beside their baselines, agreement of the views, what sits on what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from agents.extractors import KeypointExtractor
from agents.scene import Scene
from experiments.judging.episodes import Episodes
from kp3d_rl.autoencoder import Autoencoder, train_autoencoder
from kp3d_rl.keypoint3d import Keypoint3D
from kp3d_rl.metrics import (
    EpisodeSplit,
    constant_probe,
    median_distances,
    moving_bodies,
    on_own_body,
    own_bodies,
    ridge_probe,
    same_body_share,
    view_disagreement,
)

CENTIMETRES = 100.0
FIRST_BODY = "first body"
"""The probe from the true position of the first body, which is the hand where there is one: a hand that goes to a thing
tells much about it, without anyone having seen the thing."""
CHUNK = 128
"""Frames that are encoded at a time."""


@dataclass(frozen=True)
class Baselines:
    """What keypoints are compared with beside the constant.

    :param random_encoders: fresh encoders of the same configuration, whose mean error is taken; 0 leaves them out.
    :param autoencoder_steps: gradient steps of the plain autoencoder; 0 leaves it out.
    :param frames: (N, V, H, W, 3) uint8 that the autoencoder is trained on; None takes those of the episodes that fit
        the probe.
    :param seed: of their weights and batches.
    """

    random_encoders: int = 3
    autoencoder_steps: int = 1500
    frames: Tensor | None = field(default=None, repr=False)
    seed: int = 0


@dataclass(frozen=True)
class Sitting:
    """Where each of K keypoints sits; lengths in cm.

    :param confidence: (K,) fused, the mean over frames; 1 is an average keypoint.
    :param body: (K,) name of its own body, the one that it is on most often (:func:`kp3d_rl.metrics.own_bodies`).
    :param distance: (K,) to that surface, median over frames.
    :param stays: (K,) share of the frames in which it is on that body.
    :param apart: (K,) how far the views place it from each other, pairs of views weighted by their confidences.
    :param apart_unweighted: (K,) the same with all pairs alike.
    :param counted: (K,) bool: confident, and on a body that moves.
    :param same_body_share: share of the counted keypoints' sightings that are on their own body; NaN where none count.
    """

    confidence: np.ndarray
    body: tuple[str, ...]
    distance: np.ndarray
    stays: np.ndarray
    apart: np.ndarray
    apart_unweighted: np.ndarray
    counted: np.ndarray
    same_body_share: float

    def on(self, body: str, radius: float) -> np.ndarray:
        """Indices of the counted keypoints that sit on a body.

        :param body: their own body.
        :param radius: cm, largest median distance.
        """
        own = np.array([name == body for name in self.body])
        return np.flatnonzero(self.counted & own & (self.distance <= radius))

    def to_dict(self) -> dict[str, Any]:
        """Means over the counted keypoints, and every keypoint, fit for JSON; None where there is no number."""

        def mean(values: np.ndarray) -> float | None:
            return float(values[self.counted].mean()) if self.counted.any() else None

        return {
            "keypoints": len(self.body),
            "counted": int(self.counted.sum()),
            "view_disagreement_cm": mean(self.apart),
            "view_disagreement_unweighted_cm": mean(self.apart_unweighted),
            "same_body_share": None if np.isnan(self.same_body_share) else self.same_body_share,
            "each": [
                {
                    "keypoint": k,
                    "confidence": float(self.confidence[k]),
                    "body": self.body[k],
                    "distance_cm": float(self.distance[k]),
                    "same_body_share": float(self.stays[k]),
                    "views_apart_cm": float(self.apart[k]),
                    "counted": bool(self.counted[k]),
                }
                for k in range(len(self.body))
            ],
        }


@dataclass(frozen=True)
class Found:
    """What an encoder says of E episodes of T instants; V views, K keypoints.

    :param features: (E, T, F) keypoints as a policy reads them, and nothing else: fused points in workspace units and
        confidences; in 2D what every view says.
    :param points: (E T, K, 3) fused, metres, workspace frame.
    :param view_points: (E T, V, K, 3) each view's own, metres.
    :param confidence: (E T, V, K) each view's.
    :param fused_confidence: (E T, K), 1 is an average keypoint.
    """

    features: np.ndarray
    points: Tensor
    view_points: Tensor
    confidence: Tensor
    fused_confidence: Tensor


@torch.no_grad()
def find(extractor: KeypointExtractor, episodes: Episodes) -> Found:
    """Run an encoder on every instant, noise-free.

    :param extractor: on any device.
    :param episodes: to look at.
    :return: on the CPU.
    """
    device = extractor.encoder.centre.device
    images = torch.as_tensor(episodes.images).flatten(0, 1)
    poses = None if episodes.camera_poses is None else torch.as_tensor(episodes.camera_poses).flatten(0, 1)
    parts = []
    for rows in torch.arange(len(images)).split(CHUNK):
        said = extractor.encoder(images[rows].to(device), None if poses is None else poses[rows].to(device))
        values = (extractor.describe(said), said.points, said.view_points, said.confidence, said.fused_confidence)
        parts.append([value.cpu() for value in values])
    features, *rest = (torch.cat(part) for part in zip(*parts, strict=True))
    return Found(features.unflatten(0, episodes.images.shape[:2]).numpy(), *rest)


def make_extractor(env: gym.Env, encoder: Keypoint3D, fresh: int | None = None) -> KeypointExtractor:
    """What turns an encoder's keypoints into features.

    :param env: gives the observation space and the cameras.
    :param encoder: whose options, and unless ``fresh`` is given whose weights and device, are taken.
    :param fresh: seed of new weights.
    """
    if fresh is not None:
        torch.manual_seed(fresh)
    extractor = KeypointExtractor(env.observation_space, Scene.of(env), encoder.config)
    if fresh is None:
        extractor.encoder.load_state_dict(encoder.state_dict())
    return extractor.to(encoder.centre.device)


def probe_errors(
    found: Found,
    encoder: Keypoint3D,
    env: gym.Env,
    episodes: Episodes,
    bodies: Sequence[str],
    split: EpisodeSplit,
    baselines: Baselines,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """Errors of ridge probes from keypoints and from what they are compared with.

    :param found: by the encoder that is judged.
    :param encoder: that encoder.
    :param env: gives observation space and background.
    :param episodes: E of T instants.
    :param bodies: B names.
    :param split: which episodes fit and which judge.
    :param baselines: what to compare with.
    :param on_step: told how many of how many steps of the autoencoder are done.
    :return: (B,) mean errors on the held-out episodes, cm, by name; ``keypoints`` first. :data:`FIRST_BODY` has NaN for
        that body itself, and is left out where it is the only one.
    """
    targets = episodes.positions(bodies)

    def probe(features: np.ndarray) -> np.ndarray:
        return CENTIMETRES * ridge_probe(features, targets, split)

    errors = {"keypoints": probe(found.features), "constant": CENTIMETRES * constant_probe(targets, split)}
    if len(bodies) > 1:
        errors[FIRST_BODY] = np.append(np.nan, probe(targets[:, :, 0])[1:])
    seeds = [1000 * baselines.seed + number for number in range(baselines.random_encoders)]
    if seeds:
        drawn = [probe(find(make_extractor(env, encoder, seed), episodes).features) for seed in seeds]
        errors["random encoder"] = np.mean(drawn, axis=0)
    if baselines.autoencoder_steps:
        torch.manual_seed(baselines.seed)
        autoencoder = Autoencoder(encoder, found.features.shape[-1], Scene.of(env).background_tensor())
        errors["autoencoder"] = probe(
            latents(autoencoder.to(encoder.centre.device), episodes, split, baselines, on_step)
        )
    return errors


def latents(
    autoencoder: Autoencoder,
    episodes: Episodes,
    split: EpisodeSplit,
    baselines: Baselines,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Train an autoencoder on the baselines' frames, or the episodes that fit the probe, and encode all episodes.

    :return: (E, T, F) its bottleneck.
    """
    images, device = torch.as_tensor(episodes.images), autoencoder.to_latent.weight.device
    frames = images[torch.as_tensor(split.train)].flatten(0, 1) if baselines.frames is None else baselines.frames
    train_autoencoder(autoencoder, frames, baselines.autoencoder_steps, seed=baselines.seed, on_step=on_step)
    with torch.no_grad():
        encoded = [autoencoder.encode(part.to(device)).cpu() for part in images.flatten(0, 1).split(CHUNK)]
    return torch.cat(encoded).unflatten(0, images.shape[:2]).numpy()


def sitting(found: Found, episodes: Episodes, confident: float = 0.5) -> Sitting:
    """Where keypoints sit, over all episodes together.

    :param found: by a 3D encoder.
    :param episodes: with all bodies that are seen.
    :param confident: fused confidence from which on, in the mean over frames, a keypoint is confident.
    """
    distances = episodes.distances(found.points.numpy())
    confidence = found.fused_confidence.mean(0).numpy()
    own, moves = own_bodies(distances), moving_bodies(episodes.corners())
    return Sitting(
        confidence=confidence,
        body=tuple(episodes.body_names[index] for index in own),
        distance=CENTIMETRES * median_distances(distances, own),
        stays=on_own_body(distances, own).mean(0),
        apart=CENTIMETRES * view_disagreement(found.view_points, found.confidence).mean(0).numpy(),
        apart_unweighted=CENTIMETRES * view_disagreement(found.view_points).mean(0).numpy(),
        counted=(confidence >= confident) & moves[own],
        same_body_share=same_body_share(distances, moves, confidence >= confident),
    )
