"""Policies for SAC and its kin with one encoder, which the critic and the auxiliary loss train together.

SB3 gives actor, critic and target critic an extractor each and calls them five times per gradient step: the actor on
the batch, the actor on the next observations (without gradient), the target on these (in evaluation mode, but with
gradients switched on again), the critic on the stored actions, and the critic on the actor's actions. Here each holds
a :class:`Reader` without parameters that asks the policy's one extractor. So the target has no encoder to copy, the
actor's optimiser none to train, and:

- the critic on the stored actions reads with gradient and, gate open, carries the auxiliary loss: once per step;
- everybody else reads the same features without gradient;
- a batch is encoded once per step, however many ask, in training after a random shift of its views.

As in DrQ-v2 (Yarats et al., 2022) there is no target encoder, and the actor's loss sees the features from before the
critic's update of the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import MultiInputPolicy
from torch import Tensor, nn

from agents.baselines import PixelExtractor
from agents.extractors import Observation, ViewExtractor
from agents.policies import AuxiliaryParts, Schedule, TensorObservations, require_action_space, scaled_optimizer
from envs.errors import UserError


@dataclass
class _Reading:
    """An encoded batch.

    :param images: of the batch, held so that no other tensor can take its place in memory.
    :param version: how often the tensor had been written to.
    :param features: (B, F) without gradient.
    :param graph: features with gradient and how they were found, until the critic takes them.
    """

    images: Tensor
    version: int
    features: Tensor
    graph: tuple[Tensor, Any] | None


class Readings:
    """Encodes each batch of a gradient step once.

    Batches are told apart by the identity of their ``images``. Nothing is kept outside training mode: rollouts,
    prediction and evaluation always encode anew.

    :param extractor: the policy's one extractor.
    """

    def __init__(self, extractor: ViewExtractor) -> None:
        self.extractor = extractor
        self.kept: list[_Reading] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies start empty: a tensor with a graph cannot be copied."""
        return self.__dict__ | {"kept": []}

    def clear(self) -> None:
        """Forget every batch."""
        self.kept = []

    def fixed(self, observations: Observation, graph_later: bool = False) -> Tensor:
        """Features without gradient.

        :param observations: of a batch B.
        :param graph_later: build the graph all the same if the batch is new: the critic will ask for it.
        :return: (B, F).
        """
        if not self.extractor.training:
            with torch.no_grad():
                return self.extractor(observations)
        reading = self._find(observations) or self._encode(observations, graph_later)
        return reading.features

    def trainable(self, observations: Observation) -> Tensor:
        """Features with gradient, which carry the auxiliary loss where it is wanted.

        :param observations: of a batch B.
        :return: (B, F).
        """
        reading = self._find(observations)
        if reading is not None and reading.graph is None:
            self.clear()  # trained on already: whoever trains on the same batch again wants today's encoder
            reading = None
        reading = reading or self._encode(observations, True)
        (features, found), reading.graph = reading.graph, None
        return self.extractor.attach(features, found, observations)

    def _find(self, observations: Observation) -> _Reading | None:
        images = observations["images"]
        return next((r for r in self.kept if r.images is images and r.version == images._version), None)

    def _encode(self, observations: Observation, graph: bool) -> _Reading:
        with torch.set_grad_enabled(graph and self.extractor.learns):
            features, found = self.extractor.encode(observations, augment=True)
        images = observations["images"]
        reading = _Reading(images, images._version, features.detach(), (features, found) if graph else None)
        self.kept = [*self.kept[-1:], reading]  # a step has two batches: observations and next observations
        return reading


class Reader(BaseFeaturesExtractor):
    """The extractor of an actor or a critic that has none of its own: no parameters, no buffers.

    :param readings: shared by all readers of a policy; no module, so the encoder is not registered here.
    """

    def __init__(self, readings: Readings) -> None:
        super().__init__(readings.extractor._observation_space, readings.extractor.features_dim)
        self.readings = readings
        self.role: Literal["actor", "critic", "target"] = "target"
        self._for_the_actor = True

    def note_actions(self, critic: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the critic: actions with a gradient are the actor's, and the call is for its loss."""
        given = [*args[1:], *kwargs.values()]
        self._for_the_actor = any(isinstance(value, Tensor) and value.requires_grad for value in given)

    def forward(self, observations: Observation) -> Tensor:
        """Features of a batch.

        :param observations: as the environment made them, (B, ...) each.
        :return: (B, features_dim), with gradient for the critic's own loss alone.
        """
        learning = torch.is_grad_enabled() and self.readings.extractor.training
        if self.role == "critic" and learning and not self._for_the_actor:
            return self.readings.trainable(observations)
        return self.readings.fixed(observations, graph_later=self.role == "actor" and learning)


def hand_over(obs: Observation, features_extractor: BaseFeaturesExtractor) -> Tensor:
    """SB3's ``extract_features`` without the conversion of views to float.

    :param obs: tensors as the environment made them, (B, ...) each.
    :param features_extractor: of actor or critic.
    :return: (B, F) features.
    """
    return features_extractor(obs)


class OneEncoder(TensorObservations):
    """Mixin, listed before an off-policy policy of SB3 or sb3-contrib: one encoder for actor, critic and target.

    The encoder is ``features_extractor`` of the policy, trained by ``critic.optimizer`` as a group of its own.

    :raises UserError: with ``share_features_extractor``, which would choose between encoders, or with actions that
        are not a finite Box.
    """

    _learning_rate_scale = 1.0

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space, lr_schedule: Schedule, **kwargs: Any
    ) -> None:
        name = type(self).__name__
        if "share_features_extractor" in kwargs:
            given = kwargs["share_features_extractor"]
            raise UserError(f"{name} has one encoder: leave share_features_extractor out, got {given}")
        require_action_space("SAC", action_space, name)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @property
    def encoder_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that trains encoder and decoder."""
        return self.critic.optimizer

    def make_features_extractor(self) -> Reader:
        """What actor, critic and target get."""
        return Reader(self._readings)

    def extract_features(self, obs: Observation, features_extractor: BaseFeaturesExtractor) -> Tensor:
        """See :func:`hand_over`."""
        return hand_over(obs, features_extractor)

    def set_training_mode(self, mode: bool) -> None:
        """Put everything but the target into training or evaluation mode.

        :param mode: True for training.
        """
        super().set_training_mode(mode)  # of actor and critic
        for module in self.children():
            if not isinstance(module, BaseModel):
                module.train(mode)
        self._readings.clear()

    def _build(self, lr_schedule: Schedule) -> None:
        """Make the encoder, let SB3 make actor and critics around readers of it, and have the critic train it."""
        self.features_extractor = super().make_features_extractor()
        self._readings = Readings(self.features_extractor)
        trained = self._encoder_parameters()
        super()._build(lr_schedule)
        for module in self.children():
            if isinstance(module, BaseModel):
                module.extract_features = hand_over
        self.actor.features_extractor.role = "actor"
        reader = self.critic.features_extractor
        reader.role = "critic"
        self.critic.register_forward_pre_hook(reader.note_actions, with_kwargs=True)
        self.critic.optimizer = scaled_optimizer(
            self.critic.parameters(), trained, self._learning_rate_scale, lr_schedule(1), self.optimizer_kwargs
        )

    def _encoder_parameters(self) -> list[nn.Parameter]:
        """What the critic's optimiser trains beside the critic."""
        return list(self.features_extractor.parameters())


class OffPolicyAuxiliary(AuxiliaryParts, OneEncoder):
    """Mixin: an off-policy policy on an encoder with a loss of its own, keypoints unless told otherwise.

    Arguments as :class:`~agents.policies.AuxiliaryParts`. Listed before the policy:
    ``class MyPolicy(OffPolicyAuxiliary, TQCMultiInputPolicy): ...``
    """

    def _encoder_parameters(self) -> list[nn.Parameter]:
        return self._add_auxiliary()


class AuxiliarySACPolicy(OffPolicyAuxiliary, MultiInputPolicy):
    """SAC on an encoder with a loss of its own."""


class KeypointSACPolicy(AuxiliarySACPolicy):
    """SAC on keypoints."""


class PixelSACPolicy(OneEncoder, MultiInputPolicy):
    """SAC on :class:`~agents.baselines.PixelExtractor` or its kin, trained by the critic alone, as DrQ does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", PixelExtractor)
        super().__init__(*args, **kwargs)
