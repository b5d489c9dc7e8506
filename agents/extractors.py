"""Feature extractors for Stable-Baselines3: keypoints, and pixels as the baseline.

Both take the observation as the environment gives it (uint8 views, height-width-channel) and do the one conversion to
floats themselves; the policies in :mod:`agents.policies` hand it over untouched.
"""

from __future__ import annotations

import gymnasium as gym
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.scene import Scene
from agents.seam import AuxiliaryLoss, scale_gradient
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig, Keypoints, to_network_layout
from kp3d_rl.reconstruction import KeypointDecoder, auxiliary_terms

Observation = dict[str, Tensor]


class KeypointExtractor(BaseFeaturesExtractor):
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

    def forward(self, observations: Observation) -> Tensor:
        """Keypoints as the policy reads them; the auxiliary loss rides along when wanted (see :mod:`agents.seam`).

        :param observations: ``images`` (B, V, H, W, 3) uint8, optionally ``proprio`` (B, P) and, where cameras move,
            ``camera_poses`` (B, V, 4, 4).
        :return: (B, features_dim).
        """
        keypoints = self.encoder(observations["images"], observations.get("camera_poses"))
        features = scale_gradient(self.describe(keypoints), self.policy_gradient_scale)
        if "proprio" in observations:
            features = torch.cat([features, observations["proprio"].float()], dim=1)
        if self.auxiliary is not None and self.auxiliary.wanted(self):
            features = self.auxiliary.attach(features, self.terms(observations, keypoints))
        return features

    def terms(self, observations: Observation, keypoints: Keypoints | None = None) -> dict[str, Tensor]:
        """The auxiliary losses of a batch, unweighted, by name.

        :param observations: ``images`` and, where cameras move, ``camera_poses``.
        :param keypoints: what the encoder said of them, if that is known already.
        """
        images, poses = observations["images"], observations.get("camera_poses")
        keypoints = self.encoder(images, poses) if keypoints is None else keypoints
        return auxiliary_terms(self.encoder, self._decoder[0], keypoints, images, poses)

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


class PixelExtractor(BaseFeaturesExtractor):
    """The baseline: one convolutional network over all views, stacked on channels, and ``proprio``.

    The layers are those of Mnih et al. 2015 as SB3's NatureCNN has them.

    :param observation_space: Dict with ``images`` and optionally ``proprio``.
    :param features: size of the image features.
    :raises UserError: for views that are too small for the layers.
    """

    def __init__(self, observation_space: gym.spaces.Dict, features: int = 256) -> None:
        views, height, width, _ = observation_space["images"].shape
        if min(height, width) < 36:
            raise UserError(f"the pixel encoder's layers need views of at least 36 x 36 pixels, got {height} x {width}")
        proprio = observation_space.spaces.get("proprio")
        super().__init__(observation_space, features + (proprio.shape[0] if proprio else 0))
        self.views = views
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

    def forward(self, observations: Observation) -> Tensor:
        """Features of the views, and ``proprio``.

        :param observations: ``images`` (B, V, H, W, 3) uint8 and optionally ``proprio`` (B, P); poses, where they
            move, are ignored: this baseline has no geometry.
        :return: (B, features_dim).
        """
        images = to_network_layout(observations["images"]).unflatten(0, (-1, self.views)).flatten(1, 2)
        features = self.linear(self.cnn(images))
        if "proprio" in observations:
            features = torch.cat([features, observations["proprio"].float()], dim=1)
        return features
