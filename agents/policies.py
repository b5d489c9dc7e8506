"""Policies for Stable-Baselines3 that read multi-view observations as they are.

SB3 neither scales nor transposes a 4-D image box, but it converts it to float before the extractor sees it. These
policies hand the uint8 views over untouched; the extractor converts them once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.extractors import KeypointExtractor, Observation, PixelExtractor
from agents.optimizers import ScaledAdam
from agents.scene import Scene
from agents.seam import AuxiliaryLoss
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.losses import weighted_sum
from kp3d_rl.reconstruction import KeypointDecoder

Schedule = Callable[[float], float]


class RawObservations(BaseModel):
    """Hands observations to the extractor as they are, on every path.

    Listed *after* an SB3 policy, it stands just before ``BaseModel`` in the method resolution order, which is where
    all of SB3's policies, actors and critics end up calling ``extract_features``.
    """

    def extract_features(self, obs: Observation, features_extractor: BaseFeaturesExtractor) -> Tensor:
        """Run the extractor on the untouched observation.

        :param obs: tensors as the environment made them, (B, ...) each.
        :param features_extractor: of actor or critic.
        :return: (B, F) features.
        """
        return features_extractor(obs)


class RawObservationPolicy(MultiInputActorCriticPolicy, RawObservations):
    """PPO policy whose extractor gets the observation's own types (uint8 views)."""


class PixelPolicy(RawObservationPolicy):
    """Actor and critic on :class:`~agents.extractors.PixelExtractor`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", PixelExtractor)
        super().__init__(*args, **kwargs)


class KeypointPolicy(RawObservationPolicy):
    """Actor and critic on keypoints, with the decoder that trains them.

    :param scene: the environment's cameras, box and background: ``Scene.of(env)``.
    :param encoder: the encoder's options.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder.
    :param learning_rate_scale: learning rate of encoder and decoder relative to the policy's.
    :raises UserError: with ``share_features_extractor=False``: two encoders would be trained on one loss.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        scene: Scene,
        encoder: Keypoint3DConfig | None = None,
        policy_gradient_scale: float = 0.1,
        learning_rate_scale: float = 4.0,
        **kwargs: Any,
    ) -> None:
        if not kwargs.get("share_features_extractor", True):
            raise UserError("KeypointPolicy has one encoder: share_features_extractor must be True, got False")
        # Before super().__init__, which calls _build; a plain value is no module and may be set this early.
        self._scene, self._learning_rate_scale = scene, learning_rate_scale
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=KeypointExtractor,
            features_extractor_kwargs={
                "scene": scene,
                "config": encoder or Keypoint3DConfig(),
                "policy_gradient_scale": policy_gradient_scale,
            },
            **kwargs,
        )

    @property
    def auxiliary(self) -> AuxiliaryLoss:
        """The auxiliary loss of this policy; closed until a callback opens it."""
        return self.features_extractor.auxiliary

    @property
    def encoder_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that trains encoder and decoder."""
        return self.optimizer

    def _build(self, lr_schedule: Schedule) -> None:
        """Add the decoder before the optimiser is made, and keep the encoder's own initial weights."""
        extractor: KeypointExtractor = self.features_extractor
        self.decoder = KeypointDecoder(extractor.encoder, self._scene.background_tensor())
        initial = {name: value.clone() for name, value in extractor.state_dict().items()}
        super()._build(lr_schedule)
        # SB3's orthogonal initialisation reaches into every convolution of the extractor: undo that.
        extractor.load_state_dict(initial)
        weights = extractor.encoder.config.loss
        trained = [*extractor.encoder.parameters(), *self.decoder.parameters()]
        extractor.attach_auxiliary(AuxiliaryLoss(lambda terms: weighted_sum(terms, weights), trained), self.decoder)
        self.optimizer = self._scaled_optimizer(trained, lr_schedule(1))

    def _scaled_optimizer(self, trained: list[nn.Parameter], learning_rate: float) -> ScaledAdam:
        """One Adam for all: actor and critic at the scheduled rate, encoder and decoder at theirs."""
        own = {id(parameter) for parameter in trained}
        groups = [
            {"params": [p for p in self.parameters() if id(p) not in own]},
            {"params": trained, "lr_scale": self._learning_rate_scale},
        ]
        return ScaledAdam(groups, lr=learning_rate, **self.optimizer_kwargs)
