"""What a geometry-aware run keeps: ``runs/human/<name>/``.

Beside what all such runs have (:mod:`experiments.runs.plain`): ``networks/<stage>.safetensors``, the results of
"detector", "synthesis" and "autoencoder", ``networks/<stage>-training.safetensors`` until a stage is done,
``metrics.csv`` with a row for each judgement, ``regressor.safetensors``, ``eval.json``, pictures and ``videos/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from envs.errors import UserError
from envs.scenes.human import JOINTS, LIMBS
from experiments.geometry_aware.config import HUMAN, GeometryAwareRunConfig
from experiments.runs.folder import ROOT
from experiments.runs.plain import PlainRun, read_tensors
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.geometry_aware.network import GeometryAwareNetwork
from kp3d_rl.geometry_aware.skeleton import Skeleton
from kp3d_rl.storage.files import remove, write_tensors

Stage = Literal["detector", "synthesis", "autoencoder"]
SKELETON = Skeleton(JOINTS, LIMBS)
_SEEDS: dict[str, int] = {"detector": 0, "synthesis": 1, "autoencoder": 2}


class GeometryAwareRun(PlainRun):
    """A run folder."""

    config: GeometryAwareRunConfig
    KIND, PROGRAM, MARK, CONFIG, HOME = "geometry-aware", "geometry-aware", "networks", GeometryAwareRunConfig, HUMAN

    @property
    def stages(self) -> list[Stage]:
        """What is learnt, in order."""
        first: list[Stage] = ["detector"] if self.config.source == "detector" else []
        last: list[Stage] = ["autoencoder"] if self.config.autoencoder else []
        return [*first, "synthesis", *last]

    @property
    def finished(self) -> bool:
        """Whether all stages are over."""
        return all(self.weights_file(stage).is_file() for stage in self.stages)

    def weights_file(self, stage: Stage) -> Path:
        """The result of a stage."""
        return self.path / "networks" / f"{stage}.safetensors"

    def training_file(self, stage: Stage) -> Path:
        """What is needed to go on with a stage."""
        return self.path / "networks" / f"{stage}-training.safetensors"

    def new_network(self, stage: Stage) -> nn.Module:
        """A stage's network as it is before its first step.

        :return: a detector; the one or two networks of "synthesis"; or the one of "autoencoder".
        """
        with torch.random.fork_rng([]):
            torch.manual_seed(3 * self.config.seed + _SEEDS[stage])
            if stage == "detector":
                return KeypointDetector(len(JOINTS), self.config.detector)
            count = 2 if stage == "synthesis" and not self.config.network.shared else 1
            return nn.ModuleList(GeometryAwareNetwork(SKELETON, self.config.network) for _ in range(count))

    def network(self, stage: Stage) -> nn.Module:
        """A stage's network: the result, or what there is so far.

        :raises UserError: where there is none, or its file is damaged.
        """
        done = self.weights_file(stage).is_file()
        path = self.weights_file(stage) if done else self.training_file(stage)
        if not path.is_file():
            raise UserError(f"{self.path} has no {stage} network: go on with `make geometry-aware RESUME={self.path}`")
        weights, prefix = read_tensors(path), "" if done else "network."
        network = self.new_network(stage)
        try:
            network.load_state_dict({name: weights[prefix + name] for name in network.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path} holds no such network: {str(error).splitlines()[0]}") from None
        return network.eval()

    def finish(self, stage: Stage, network: nn.Module) -> None:
        """Write a stage's result; from then on it is over."""
        write_tensors(self.weights_file(stage), network.state_dict())
        remove(self.training_file(stage))


def asks_for_geometry_aware(argv: list[str], root: Path = ROOT) -> bool:
    """Whether a program that works on all kinds of runs was asked for a geometry-aware run."""
    return GeometryAwareRun.is_asked_for(argv, "--env", [HUMAN], root)
