"""Policies for Stable-Baselines3 that read multi-view observations as they are.

SB3 neither scales nor transposes a 4-D image box, but it converts it to float before the extractor sees it. These
policies hand the uint8 views over untouched; the extractor converts them once. On-policy policies are here, those of
SAC and TQC in :mod:`agents.offpolicy` and :mod:`agents.contrib`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.extractors import KeypointExtractor, Observation, PixelExtractor, RADExtractor
from agents.optimizers import ScaledAdam
from agents.scene import Scene
from agents.seam import AuxiliaryLoss
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.losses import weighted_sum
from kp3d_rl.reconstruction import KeypointDecoder

Schedule = Callable[[float], float]

ACTION_SPACES: dict[str, tuple[type[spaces.Space], ...]] = {
    "PPO": (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    "SAC": (spaces.Box,),
    "TQC": (spaces.Box,),
}
"""What each algorithm can act in."""


def require_action_space(algorithm: str, space: spaces.Space, name: str | None = None) -> None:
    """Refuse an algorithm that cannot act in an environment, before SB3's own assertion does.

    :param algorithm: one of :data:`ACTION_SPACES`.
    :param space: the environment's actions.
    :param name: what to call it in the message, if not by the algorithm's name.
    :raises UserError: naming the algorithm, the space and what fits.
    """
    if not isinstance(space, ACTION_SPACES[algorithm]):
        kinds = ", ".join(kind.__name__ for kind in ACTION_SPACES[algorithm])
        others = [name for name, fitting in ACTION_SPACES.items() if isinstance(space, fitting)]
        use = f"algorithms that fit: {', '.join(others)}" if others else "no algorithm here fits"
        raise UserError(f"{name or algorithm} acts in {kinds}, this environment's actions are {space}; {use}")
    if isinstance(space, spaces.Box) and not np.isfinite([space.low, space.high]).all():
        raise UserError(f"{name or algorithm} needs actions with finite bounds, this environment's are {space}")


class TensorObservations(BaseModel):
    """Acts on observations of which some are tensors already, as :class:`agents.batch_env.BatchVecEnv` gives them."""

    def obs_to_tensor(self, observation: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
        """An observation as tensors on the policy's device.

        :param observation: arrays or tensors by name, with or without a batch dimension.
        :return: (B, ...) tensors, and whether there was a batch dimension.
        """
        tensors = {key: values for key, values in observation.items() if isinstance(values, Tensor)}
        arrays = {key: values for key, values in observation.items() if key not in tensors}
        found, batched = super().obs_to_tensor(arrays)
        for key, values in tensors.items():
            shape = self.observation_space[key].shape
            batched |= values.dim() > len(shape)
            found[key] = values.to(self.device).reshape(-1, *shape)
        return found, batched


class RawObservations(TensorObservations):
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


class RADPolicy(RawObservationPolicy):
    """Actor and critic on :class:`~agents.extractors.RADExtractor`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", RADExtractor)
        super().__init__(*args, **kwargs)


class KeypointParts(BaseModel):
    """What every policy on keypoints has, whatever the algorithm: extractor, decoder, and the loss that trains them.

    ``features_extractor`` and ``decoder`` have these names in all of them, so that weights can be carried over.

    :param scene: the environment's cameras, box and background: ``Scene.of(env)``.
    :param encoder: the encoder's options.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder (off-policy: the critic's).
    :param learning_rate_scale: learning rate of encoder and decoder relative to the policy's.
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

    def _add_decoder(self) -> list[nn.Parameter]:
        """Make the decoder and the loss that trains it with the encoder; returns the parameters of both."""
        extractor: KeypointExtractor = self.features_extractor
        self.decoder = KeypointDecoder(extractor.encoder, self._scene.background_tensor())
        config = extractor.encoder.config
        trained = [*extractor.encoder.parameters(), *self.decoder.parameters()]
        auxiliary = AuxiliaryLoss(lambda terms: weighted_sum(terms, config.loss_at(auxiliary.calls)), trained)
        extractor.attach_auxiliary(auxiliary, self.decoder)
        return trained

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What SB3's ``policy.save`` writes beside the weights."""
        data = super()._get_constructor_parameters()
        del data["features_extractor_class"]
        extractor = data.pop("features_extractor_kwargs")
        return data | {
            "scene": self._scene,
            "encoder": extractor["config"],
            "policy_gradient_scale": extractor["policy_gradient_scale"],
            "learning_rate_scale": self._learning_rate_scale,
        }


class KeypointPolicy(KeypointParts, RawObservationPolicy):
    """PPO's actor and critic on keypoints, with the decoder that trains them; arguments as :class:`KeypointParts`.

    :raises UserError: with ``share_features_extractor=False``: two encoders would be trained on one loss.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("share_features_extractor", True):
            raise UserError("KeypointPolicy has one encoder: share_features_extractor must be True, got False")
        super().__init__(*args, **kwargs)

    @property
    def encoder_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that trains encoder and decoder."""
        return self.optimizer

    def _build(self, lr_schedule: Schedule) -> None:
        """Add the decoder before the optimiser is made, and keep the encoder's own initial weights."""
        trained = self._add_decoder()
        initial = {name: value.clone() for name, value in self.features_extractor.state_dict().items()}
        super()._build(lr_schedule)
        # SB3's orthogonal initialisation reaches into every convolution of the extractor: undo that.
        self.features_extractor.load_state_dict(initial)
        self.optimizer = scaled_optimizer(
            self.parameters(), trained, self._learning_rate_scale, lr_schedule(1), self.optimizer_kwargs
        )


def scaled_optimizer(
    parameters: Iterable[nn.Parameter],
    encoder: list[nn.Parameter],
    scale: float,
    learning_rate: float,
    options: dict[str, Any],
) -> ScaledAdam:
    """One Adam for all: the encoder's parameters at a rate of their own, the rest at the scheduled one.

    :param parameters: with or without the encoder's among them.
    :param encoder: encoder and decoder.
    :param scale: of their learning rate.
    :param learning_rate: at the start.
    :param options: Adam's own.
    """
    own = {id(parameter) for parameter in encoder}
    rest = [p for p in parameters if id(p) not in own]
    return ScaledAdam([{"params": rest}, {"params": encoder, "lr_scale": scale}], lr=learning_rate, **options)
