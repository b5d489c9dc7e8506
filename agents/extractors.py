"""Feature extractors for Stable-Baselines3: keypoints, and pixels as the baseline.

Both take the observation as the environment gives it (uint8 views, height-width-channel) and do the one conversion to
floats themselves; the policies in :mod:`agents.policies` hand it over untouched.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.scene import Scene
from agents.seam import AuxiliaryLoss, scale_gradient
from envs.errors import UserError
from kp3d_rl.augmentation import centre_crop, random_crop, random_shift
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig, Keypoints, to_network_layout
from kp3d_rl.reconstruction import KeypointDecoder, auxiliary_terms

Observation = dict[str, Tensor]
CROP = 0.84
"""Share of a view's height and width that a random crop keeps."""


class ViewExtractor(BaseFeaturesExtractor):
    """Encoder of views in two steps, so that off-policy training can encode a batch once and read it several times.

    On-policy, one call does both.
    """

    def forward(self, observations: Observation) -> Tensor:
        """Features; the auxiliary loss rides along when wanted (see :mod:`agents.seam`).

        :param observations: ``images`` (B, V, H, W, 3) uint8, optionally ``proprio`` (B, P) and, where cameras move,
            ``camera_poses`` (B, V, 4, 4).
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

    def attach(self, features: Tensor, found: Any, observations: Observation) -> Tensor:
        """Second step: tie the auxiliary loss to the features, if there is one and it is wanted.

        :param features, found: what :meth:`encode` gave.
        :param observations: of the same batch.
        :return: the features, unchanged in value.
        """
        return features


class KeypointExtractor(ViewExtractor):
    """Keypoints in workspace units, their confidences, and ``proprio``: the policy's whole input.

    :param observation_space: Dict with ``images``, optionally ``proprio`` and ``camera_poses``.
    :param scene: the environment's cameras and box.
    :param config: the encoder's options.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder; 1 is the original's joint
        training, 0 leaves the encoder to the auxiliary loss.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Dict,
        scene: Scene,
        config: Keypoint3DConfig,
        policy_gradient_scale: float = 0.1,
    ) -> None:
        rig, proprio = scene.rig, observation_space.spaces.get("proprio")
        per_keypoint = 4 if config.dimensions == "3d" else 3 * rig.num_views
        super().__init__(observation_space, per_keypoint * config.keypoints + (proprio.shape[0] if proprio else 0))
        self.encoder = Keypoint3D(config, rig, scene.workspace)
        self.policy_gradient_scale = policy_gradient_scale
        self.auxiliary: AuxiliaryLoss | None = None
        self._decoder: tuple[KeypointDecoder, ...] = ()

    def attach_auxiliary(self, auxiliary: AuxiliaryLoss, decoder: KeypointDecoder) -> None:
        """Tell the extractor whose loss to carry.

        :param auxiliary: gate and weighting.
        :param decoder: belongs to the policy: in a tuple, it does not become a submodule that target networks copy.
        """
        self.auxiliary, self._decoder = auxiliary, (decoder,)

    @property
    def random_shift(self) -> int:
        """Pixels by which views are shifted where a pass augments."""
        return self.encoder.config.random_shift

    @property
    def learns(self) -> bool:
        """Whether the policy's gradient or the auxiliary loss reaches the encoder in the next update."""
        return self.policy_gradient_scale > 0 or (self.auxiliary is not None and self.auxiliary.is_open)

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, Keypoints]:
        """Keypoints as the policy reads them, with its share of the gradient, and as the encoder found them.

        :param observations: as in :meth:`forward`.
        :param augment: see :meth:`ViewExtractor.encode`.
        :return: (B, features_dim), and the keypoints, in the pixels of the views as they are.
        """
        keypoints = self._find(observations, augment)
        features = scale_gradient(self.describe(keypoints), self.policy_gradient_scale)
        return with_proprio(features, observations), keypoints

    def attach(self, features: Tensor, found: Keypoints, observations: Observation) -> Tensor:
        """Tie the auxiliary loss of the batch to its features, where :meth:`AuxiliaryLoss.wanted` says so."""
        if self.auxiliary is None or not self.auxiliary.wanted(self):
            return features
        return self.auxiliary.attach(features, self.terms(observations, found))

    def terms(self, observations: Observation, keypoints: Keypoints | None = None) -> dict[str, Tensor]:
        """The auxiliary losses of a batch, unweighted, by name.

        :param observations: ``images`` and, where cameras move, ``camera_poses``.
        :param keypoints: what the encoder said of them, if that is known already. If not, the encoder is asked, in
            training mode of views that are shifted at random.
        """
        images, poses = observations["images"], observations.get("camera_poses")
        keypoints = self._find(observations, self.training) if keypoints is None else keypoints
        return auxiliary_terms(self.encoder, self._decoder[0], keypoints, images, poses)

    def _find(self, observations: Observation, augment: bool) -> Keypoints:
        images, poses, pixels = observations["images"], observations.get("camera_poses"), self.random_shift
        if not (augment and pixels):
            return self.encoder(images, poses)
        shifted, offset = random_shift(images, pixels)
        return self.encoder(shifted, poses, offset)

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


class PixelExtractor(ViewExtractor):
    """The baseline: one convolutional network over all views, stacked on channels, and ``proprio``.

    The layers are those of Mnih et al. 2015 as SB3's NatureCNN has them.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param features: size of the image features.
    :param random_shift: pixels by which off-policy training shifts the views, as in DrQ (:mod:`kp3d_rl.augmentation`).
    :raises UserError: for views that are too small for the layers.
    """

    least_size = "views of at least 36 x 36 pixels"

    def __init__(self, observation_space: gym.spaces.Dict, features: int = 256, random_shift: int = 0) -> None:
        views = observation_space["images"].shape[0]
        height, width = self.input_size(*observation_space["images"].shape[1:3])
        if min(height, width) < 36:
            raise UserError(f"the pixel encoder's layers need {self.least_size}, got {height} x {width}")
        proprio = observation_space.spaces.get("proprio")
        super().__init__(observation_space, features + (proprio.shape[0] if proprio else 0))
        self.views, self.random_shift = views, random_shift
        self.cnn = nn.Sequential(
            nn.Conv2d(3 * views, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = self.cnn(torch.zeros(1, 3 * views, height, width)).shape[1]
        self.linear = nn.Sequential(nn.Linear(flat, features), nn.ReLU())

    def encode(self, observations: Observation, augment: bool = False) -> tuple[Tensor, None]:
        """Features of the views, and ``proprio``.

        :param observations: as in :meth:`forward`; poses, where cameras move, are ignored: this baseline has no
            geometry.
        :param augment: see :meth:`ViewExtractor.encode`.
        :return: (B, features_dim), and nothing.
        """
        images = self.prepare(observations["images"], augment)
        images = to_network_layout(images).unflatten(0, (-1, self.views)).flatten(1, 2)
        return with_proprio(self.linear(self.cnn(images)), observations), None

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Of what the layers see of views of (height, width) pixels."""
        return height, width

    def prepare(self, images: Tensor, augment: bool) -> Tensor:
        """What the layers are to see, (B, V, h, w, 3) of views (B, V, H, W, 3)."""
        return random_shift(images, self.random_shift)[0] if augment and self.random_shift else images


class RADExtractor(PixelExtractor):
    """The same on crops: in gradient steps each view of each sample at its own random place, else in the middle.

    Laskin et al., "Reinforcement Learning with Augmented Data" (RAD), NeurIPS 2020, as the baseline of Keypoint3D's
    paper has it: with PPO, too, the crops of an update are not those of the rollout.
    """

    least_size = "crops of at least 36 x 36 pixels"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The original's share of the views: 108 of 128 pixels."""
        return round(CROP * height), round(CROP * width)

    def prepare(self, images: Tensor, augment: bool) -> Tensor:
        """Crops: random ones where gradients are wanted of a batch."""
        size = self.input_size(*images.shape[2:4])
        trains = self.training and torch.is_grad_enabled()
        return random_crop(images, *size) if augment or trains else centre_crop(images, *size)


def with_proprio(features: Tensor, observations: Observation) -> Tensor:
    """Append what the body feels, if it is observed.

    :param features: (B, F).
    :param observations: with or without ``proprio`` (B, P).
    :return: (B, F) or (B, F + P).
    """
    if "proprio" not in observations:
        return features
    return torch.cat([features, observations["proprio"].float()], dim=1)
