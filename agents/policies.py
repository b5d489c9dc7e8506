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

from agents.baselines import PixelExtractor
from agents.extractors import AuxiliaryExtractor, KeypointExtractor, Observation
from agents.optimizers import ScaledAdam
from agents.scene import Scene
from agents.seam import AuxiliaryLoss
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3DConfig
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
    """Acts on observations of which some are tensors already, as :class:`agents.batch_env.BatchVecEnv` gives them.

    ``camera_poses`` may come with views of a rig that stood still in training: then they tell where it is now.
    """

    def obs_to_tensor(self, observation: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
        """An observation as tensors on the policy's device.

        :param observation: arrays or tensors by name, with or without a batch dimension.
        :return: (B, ...) tensors, and whether there was a batch dimension.
        """
        observation = dict(observation)
        fixed = "camera_poses" not in self.observation_space.spaces
        told = observation.pop("camera_poses", None) if fixed else None
        tensors = {key: values for key, values in observation.items() if isinstance(values, Tensor)}
        arrays = {key: values for key, values in observation.items() if key not in tensors}
        found, batched = super().obs_to_tensor(arrays)
        for key, values in tensors.items():
            shape = self.observation_space[key].shape
            batched |= values.dim() > len(shape)
            found[key] = values.to(self.device).reshape(-1, *shape)
        if told is not None:
            poses = torch.as_tensor(told, dtype=torch.float32, device=self.device)
            found["camera_poses"] = poses.reshape(-1, *poses.shape[-3:])
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
    """Actor and critic on :class:`~agents.baselines.PixelExtractor` or its kin, trained by PPO's loss alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", PixelExtractor)
        super().__init__(*args, **kwargs)


class AuxiliaryParts(BaseModel):
    """What every policy has whose encoder has a loss of its own, whatever the algorithm.

    ``features_extractor`` and, with keypoints, ``decoder`` have these names in all of them, so that weights can be
    carried over.

    :param scene: the environment's cameras, box and background: ``Scene.of(env)``.
    :param encoder: the encoder's options.
    :param policy_gradient_scale: share of the policy's gradient that reaches the encoder (off-policy: the critic's).
    :param learning_rate_scale: learning rate of what the loss trains, relative to the policy's.
    :param extractor: what the policy acts on.
    :raises UserError: for SB3's ``features_extractor_class`` in its place.
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
        extractor: type[AuxiliaryExtractor] = KeypointExtractor,
        **kwargs: Any,
    ) -> None:
        if "features_extractor_class" in kwargs:
            problem = "takes its encoder as 'extractor', a kind of AuxiliaryExtractor (docs/python.md)"
            raise UserError(f"{type(self).__name__} {problem}, not as 'features_extractor_class'")
        # Before super().__init__, which calls _build; a plain value is no module and may be set this early.
        self._scene, self._learning_rate_scale = scene, learning_rate_scale
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=extractor,
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

    def _add_auxiliary(self) -> list[nn.Parameter]:
        """Make the loss, and with keypoints the decoder, that train the encoder; returns what they train."""
        extractor: AuxiliaryExtractor = self.features_extractor
        trained = [parameter for parameter in extractor.parameters() if parameter.requires_grad]
        if isinstance(extractor, KeypointExtractor):
            self.decoder = KeypointDecoder(extractor.encoder, self._scene.background_tensor())
            extractor.read_by(self.decoder)
            trained += self.decoder.parameters()
        extractor.auxiliary = AuxiliaryLoss(extractor.total, trained)
        return trained

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What SB3's ``policy.save`` writes beside the weights."""
        data = super()._get_constructor_parameters()
        extractor = data.pop("features_extractor_kwargs")
        return data | {
            "scene": self._scene,
            "encoder": extractor["config"],
            "policy_gradient_scale": extractor["policy_gradient_scale"],
            "learning_rate_scale": self._learning_rate_scale,
            "extractor": data.pop("features_extractor_class"),
        }


class AuxiliaryPolicy(AuxiliaryParts, RawObservationPolicy):
    """PPO's actor and critic on an encoder with a loss of its own; arguments as :class:`AuxiliaryParts`.

    :raises UserError: with ``share_features_extractor=False``: two encoders would be trained on one loss.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("share_features_extractor", True):
            raise UserError(f"{type(self).__name__} has one encoder: share_features_extractor must be True, got False")
        super().__init__(*args, **kwargs)

    @property
    def encoder_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that trains encoder and decoder."""
        return self.optimizer

    def _build(self, lr_schedule: Schedule) -> None:
        """Add the loss before the optimiser is made, and keep the encoder's own initial weights."""
        trained = self._add_auxiliary()
        initial = {name: value.clone() for name, value in self.features_extractor.state_dict().items()}
        super()._build(lr_schedule)
        # SB3's orthogonal initialisation reaches into every convolution of the extractor: undo that.
        self.features_extractor.load_state_dict(initial)
        self.optimizer = scaled_optimizer(
            self.parameters(), trained, self._learning_rate_scale, lr_schedule(1), self.optimizer_kwargs
        )


class KeypointPolicy(AuxiliaryPolicy):
    """PPO's actor and critic on keypoints, with the decoder that trains them."""


def keypoint_extractor(policy: BaseModel) -> KeypointExtractor | None:
    """What finds a policy's keypoints; None where there are none.

    :param policy: of any algorithm and encoder.
    """
    extractor = getattr(policy, "features_extractor", None)
    return extractor if isinstance(extractor, KeypointExtractor) else None


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
