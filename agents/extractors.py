"""Feature extractors for Stable-Baselines3: what they have in common, and the one that finds keypoints.

They take the observation as the environment gives it (uint8 views, height-width-channel) and do the one conversion to
floats themselves; the policies in :mod:`agents.policies` hand it over untouched. What keypoints are compared with is in
:mod:`agents.baselines`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.scene import Scene
from agents.seam import AuxiliaryLoss, Terms, scale_gradient
from kp3d_rl.augmentation import random_shift
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig, Keypoints
from kp3d_rl.losses import weighted_sum
from kp3d_rl.metrics import view_disagreement
from kp3d_rl.networks import Precision
from kp3d_rl.reconstruction import KeypointDecoder, auxiliary_terms, reconstruction_quality

Observation = dict[str, Tensor]


CHANGE_SCALE = 10.0
"""Factor on the change of features since an earlier frame (the original's), however often an action was repeated."""


class ViewExtractor(BaseFeaturesExtractor):
    """Encoder of views in two steps, so that off-policy training can encode a batch once and read it several times.

    On-policy, one call does both.
    """

    def forward(self, observations: Observation) -> Tensor:
        """Features; the auxiliary loss rides along when wanted (see :mod:`agents.seam`).

        :param observations: ``images`` (B, V, H, W, 3) uint8, with a frame stack ``previous`` (B, S - 1, V, H, W, 3),
            optionally ``proprio`` (B, P) and, where cameras move, ``camera_poses`` (B, V, 4, 4).
        :return: (B, features_dim).
        """
        features, found = self.encode(observations)
        return self.attach(features, found, observations)

    @property
    def learns(self) -> bool:
        """Whether any gradient reaches the encoder in the next update."""
        return True

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Any]:
        """First step: features, and what :meth:`attach` needs to know of how they were found.

        :param observations: as in :meth:`forward`.
        :param augment: shift the views at random, by as many pixels as the extractor was told. Never in rollouts, and
            not in PPO's minibatches either, whose ratios compare with the features of the rollout.
        :return: (B, features_dim), and anything.
        """
        raise NotImplementedError

    def in_precision(self, precision: Precision) -> AbstractContextManager[None]:
        """Context in which the convolutions run in another precision.

        :param precision: "float32" is what an exported graph computes in.
        """
        raise NotImplementedError

    def attach(self, features: Tensor, found: Any, observations: Observation) -> Tensor:
        """Second step: tie the auxiliary loss to the features, if there is one and it is wanted.

        :param features, found: what :meth:`encode` gave.
        :param observations: of the same batch.
        :return: the features, unchanged in value.
        """
        return features


class AuxiliaryExtractor(ViewExtractor):
    """An encoder that a loss of its own trains beside the policy.

    Concrete ones have an ``encoder``, and say in :meth:`encode`, :meth:`terms` and :meth:`total` what it finds and what
    that loss is.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param features: numbers that the encoder makes of the views.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder; 1 is the original's joint
        training, 0 leaves the encoder to the auxiliary loss.
    """

    log_prefix = "auxiliary"
    """Before the names of what :meth:`quality` measures."""

    def __init__(self, observation_space: gym.spaces.Dict, features: int, policy_gradient_scale: float) -> None:
        proprio = observation_space.spaces.get("proprio")
        super().__init__(observation_space, features + (proprio.shape[0] if proprio else 0))
        self.policy_gradient_scale = policy_gradient_scale
        self.auxiliary: AuxiliaryLoss | None = None

    @property
    def frame_entries(self) -> tuple[str, ...]:
        """Entries of an observation that its own loss is of: ``images`` and, where cameras move, ``camera_poses``."""
        return tuple(name for name in ("images", "camera_poses") if name in self._observation_space.spaces)

    @property
    def learns(self) -> bool:
        """Whether the policy's gradient or the auxiliary loss reaches the encoder in the next update."""
        return self.policy_gradient_scale > 0 or (self.auxiliary is not None and self.auxiliary.is_open)

    def attach(self, features: Tensor, found: Any, observations: Observation) -> Tensor:
        """Tie the auxiliary loss of the batch to its features, where :meth:`AuxiliaryLoss.wanted` says so."""
        if self.auxiliary is None or not self.auxiliary.wanted(self):
            return features
        return self.auxiliary.attach(features, self.terms(observations, found))

    def terms(self, observations: Observation, found: Any = None) -> dict[str, Tensor]:
        """The auxiliary losses of a batch, unweighted, by name.

        :param observations: at least :attr:`frame_entries`.
        :param found: what :meth:`encode` said of them, if that is known already.
        """
        raise NotImplementedError

    def total(self, terms: Terms) -> Tensor:
        """The scalar that is trained on.

        :param terms: what :meth:`terms` gave.
        """
        raise NotImplementedError

    @property
    def has_looked(self) -> bool:
        """Whether nothing is left for :meth:`look_at` to find out."""
        return True

    def look_at(self, images: Tensor) -> None:
        """Learn once, before anything is trained, what the loss must know of the task's views.

        :param images: (N, V, H, W, 3) uint8 frames of many instants.
        """

    def quality(self, observations: Observation) -> dict[str, float]:
        """What the encoder is worth on frames that it was not trained on, under the names of the log.

        :param observations: ``images`` (N, V, H, W, 3) and, where cameras move, ``camera_poses``.
        """
        raise NotImplementedError


class KeypointExtractor(AuxiliaryExtractor):
    """Keypoints in workspace units, their confidences, and ``proprio``: the policy's whole input.

    :param observation_space: Dict with ``images``, optionally ``proprio`` and ``camera_poses``.
    :param scene: the environment's cameras and box.
    :param config: the encoder's options.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder.
    """

    log_prefix = "keypoints"

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        scene: Scene,
        config: Keypoint3DConfig,
        policy_gradient_scale: float = 0.1,
    ) -> None:
        per_keypoint = 4 if config.dimensions == "3d" else 3 * scene.rig.num_views
        features = frame_stack(observation_space) * per_keypoint * config.keypoints
        super().__init__(observation_space, features, policy_gradient_scale)
        self.encoder = Keypoint3D(config, scene.rig, scene.workspace, scene.cameras.moving)
        self._decoder: tuple[KeypointDecoder, ...] = ()

    def read_by(self, decoder: KeypointDecoder) -> None:
        """Tell the extractor who draws its keypoints.

        :param decoder: belongs to the policy: in a tuple, it does not become a submodule that target networks copy.
        """
        self._decoder = (decoder,)

    @property
    def decoder(self) -> KeypointDecoder:
        """What draws the keypoints."""
        return self._decoder[0]

    @property
    def random_shift(self) -> int:
        """Pixels by which views are shifted where a pass augments."""
        return self.encoder.config.random_shift

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Keypoints]:
        """Keypoints as the policy reads them, with its share of the gradient, and as the encoder found them.

        :param observations: as in :meth:`forward`.
        :param augment: see :meth:`ViewExtractor.encode`.
        :return: (B, features_dim), and the keypoints, in the pixels of the views as they are.
        """
        described, keypoints = self.read(observations, augment)
        return with_proprio(scale_gradient(described, self.policy_gradient_scale), observations), keypoints

    def read(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Keypoints]:
        """Keypoints as the policy reads them: with a frame stack also how they moved; and as the encoder found them.

        :param observations, augment: as in :meth:`encode`.
        :return: (B, S F), and the keypoints of the newest frame.
        """
        keypoints, count = self._find(observations, augment), frame_stack(self._observation_space)
        newest = keypoints if count == 1 else keypoints.rows(slice(None, None, count))
        return with_changes(self.describe(keypoints), count), newest

    @contextlib.contextmanager
    def in_precision(self, precision: Precision) -> Iterator[None]:
        """See :meth:`ViewExtractor.in_precision`."""
        encoder, before = self.encoder, self.encoder.config
        encoder.config = dataclasses.replace(before, precision=precision)
        try:
            yield
        finally:
            encoder.config = before

    def terms(self, observations: Observation, found: Keypoints | None = None) -> dict[str, Tensor]:
        """The auxiliary losses of a batch, unweighted, by name.

        :param observations: ``images`` and, where cameras move, ``camera_poses``.
        :param found: what the encoder said of them, if that is known already. If not, the encoder is asked, in
            training mode of views that are shifted at random.
        """
        images, poses = observations["images"], observations.get("camera_poses")
        newest = {key: values for key, values in observations.items() if key != "previous"}
        keypoints = self._find(newest, self.training) if found is None else found
        return auxiliary_terms(self.encoder, self.decoder, keypoints, images, poses)

    def total(self, terms: Terms) -> Tensor:
        """The terms by their weights after so many minibatches."""
        calls = self.auxiliary.calls if self.auxiliary is not None else 0
        return weighted_sum(terms, self.encoder.config.loss_at(calls))

    @property
    def has_looked(self) -> bool:
        """Whether pixels have their weights, from a warm-up or a pretraining."""
        return self.decoder.has_looked

    def look_at(self, images: Tensor) -> None:
        """Tell the decoder how much each pixel varies.

        :param images: (N, V, H, W, 3) uint8 frames of many instants.
        """
        self.decoder.weigh_pixels(images)

    @torch.no_grad()
    def quality(self, observations: Observation) -> dict[str, float]:
        """Reconstruction against the frames' mean image, and the views' disagreement.

        :param observations: ``images`` (N, V, H, W, 3) and, where cameras move, ``camera_poses``; not trained on.
        """
        images, poses = observations["images"], observations.get("camera_poses")
        keypoints = self.encoder(images, poses)
        views = torch.arange(self.encoder.num_views, device=images.device)
        drawn = self.decoder(keypoints, self.encoder, views, poses)
        found = reconstruction_quality(drawn, images, self.log_prefix, self.decoder)
        if self.encoder.config.dimensions == "3d":
            disagreement = view_disagreement(keypoints.view_points, keypoints.confidence)
            found["keypoints/view_disagreement_cm"] = 100.0 * float(disagreement.mean())
        return found

    def _find(self, observations: Observation, augment: bool) -> Keypoints:
        """Of B samples' S frames, those of a sample one after the other, the newest first."""
        images, poses, offset = stacked(observations), observations.get("camera_poses"), None
        if augment and self.random_shift:
            images, offset = random_shift(images, self.random_shift)
        count = images.shape[-1] // 3
        if count > 1:
            images = each_instant(images)
            offset = None if offset is None else offset.repeat_interleave(count, 0)
            poses = None if poses is None else poses.repeat_interleave(count, 0)
        return self.encoder(images, poses, offset)

    def describe(self, keypoints: Keypoints) -> Tensor:
        """Keypoints as the policy reads them.

        :param keypoints: of a batch B.
        :return: (B, 4 K): x, y, z in workspace units and confidence, re-centred as in the original to (A K - 1) 2; in
            two dimensions (B, 3 V K): u, v in half image sizes and confidence, for every view.
        """
        count = self.encoder.config.keypoints
        if self.encoder.config.dimensions == "3d":
            points = self.encoder.workspace.normalise(keypoints.points)
            confidence = keypoints.fused_confidence
        else:
            half = keypoints.uv.new_tensor([self.encoder.width / 2, self.encoder.height / 2])
            points, confidence = (keypoints.uv - half) / half, keypoints.confidence * count
        return torch.cat([points, (confidence[..., None] - 1.0) * 2.0], dim=-1).flatten(1)


def frame_stack(space: gym.spaces.Dict) -> int:
    """S, how many frames are observed together.

    :param space: of the observations.
    """
    return 1 + (space["previous"].shape[0] if "previous" in space.spaces else 0)


def stacked(observations: Observation) -> Tensor:
    """The frames of all instants on channels, so that they can be moved and cut alike.

    :param observations: ``images`` (B, V, H, W, 3) and maybe ``previous`` (B, S - 1, V, H, W, 3).
    :return: (B, V, H, W, 3 S), the newest first.
    """
    if "previous" not in observations:
        return observations["images"]
    return torch.cat([observations["images"], *observations["previous"].unbind(1)], -1)


def each_instant(images: Tensor) -> Tensor:
    """Undo :func:`stacked`.

    :param images: (B, V, H, W, 3 S).
    :return: (B S, V, H, W, 3), those of a sample one after the other.
    """
    return images.unflatten(-1, (-1, 3)).permute(0, 4, 1, 2, 3, 5).flatten(0, 1)


def with_changes(features: Tensor, count: int) -> Tensor:
    """The newest frame's features, and by how much they differ from those of the earlier ones.

    :param features: (B S, F), those of a sample one after the other, the newest first.
    :param count: S.
    :return: (B, S F).
    """
    if count == 1:
        return features
    newest, earlier = features.unflatten(0, (-1, count)).tensor_split([1], 1)
    return torch.cat([newest, CHANGE_SCALE * (newest - earlier)], 1).flatten(1)


def with_proprio(features: Tensor, observations: Observation) -> Tensor:
    """Append what the body feels, if it is observed.

    :param features: (B, F).
    :param observations: with or without ``proprio`` (B, P).
    :return: (B, F) or (B, F + P).
    """
    if "proprio" not in observations:
        return features
    return torch.cat([features, observations["proprio"].float()], dim=1)
