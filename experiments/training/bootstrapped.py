"""A bootstrapped detector as what a policy sees by."""

from __future__ import annotations

import dataclasses

from torch import nn

from agents.bootstrapped import BootstrappedExtractor
from envs.errors import UserError
from experiments.bootstrapping.folder import BootstrapRun
from experiments.options.config import TrainConfig


def with_detector(config: TrainConfig) -> TrainConfig:
    """The configuration with number and width of the detector's keypoints and filters, which the run then knows itself.

    :param config: as typed; only of an encoder of kind "bootstrapped" is anything changed.
    :raises UserError: where the bootstrapping run saw another environment, or images of another size.
    """
    if config.encoder.kind != "bootstrapped":
        return config
    run = BootstrapRun.open(str(config.encoder.weights))
    for name in ("env", "image_size"):
        ours, theirs = getattr(config, name), getattr(run.config, name)
        if ours != theirs:
            raise UserError(f"detector {run.path} has {name.replace('_', '-')} {theirs}, this run asks for {ours}")
    keypoints, width = run.detector().keypoints, run.config.detector.width
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, keypoints=keypoints, width=width))


def load_detector(policy: nn.Module, config: TrainConfig) -> None:
    """Put the weights of a bootstrapping run's last detector into a policy that is built.

    :param policy: of any algorithm, on an encoder of kind "bootstrapped".
    :param config: of the run; its ``encoder.weights`` names the bootstrapping run.
    """
    weights = BootstrapRun.open(str(config.encoder.weights)).detector().state_dict()
    for module in policy.modules():
        if isinstance(module, BootstrappedExtractor):
            module.detector.load_state_dict(weights)
