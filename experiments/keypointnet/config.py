"""The options of a KeypointNet run: the command line and ``config.yaml`` at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.errors import unknown
from envs.scenes.objects import CATEGORIES, LANDMARKS
from kp3d_rl.keypointnet.losses import KeypointNetLossWeights
from kp3d_rl.keypointnet.network import KeypointNetConfig
from kp3d_rl.keypointnet.training import KeypointNetTrainingConfig
from kp3d_rl.options import OptionError, bounded, check_options

LEAST_SIDE = 32
"""Pixels of the smallest image."""


@dataclass(frozen=True)
class KeypointNetRunConfig:
    """One KeypointNet run.

    "--preset paper" stands for the original's sizes, which take a GPU; "--preset smoke" for a minute on two cores.

    :param category: "chair", "plane" or "car".
    :param run: name of the run folder ``runs/<category>/<run>``; by default what is done, the seed and the time.
    :param seed: of all that is random: shapes, views, networks and batches.
    :param device: "auto" takes a GPU where there is one.
    :param threads: threads of the network library; 0 takes all cores.
    :param image_size: pixels per side.
    :param shapes: objects that are trained on.
    :param test_shapes: others that the network is judged by; they are the same for all runs.
    :param views: of each object.
    :param evaluate_every: steps between judgements; 0 judges at the end alone.
    :param network: the networks.
    :param training: how they learn.
    """

    category: str = "chair"
    run: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = bounded(0, least=0, most=1024)
    image_size: int = bounded(64, least=LEAST_SIDE, most=1024)
    shapes: int = bounded(2000, least=1, most=1_000_000)
    test_shapes: int = bounded(100, least=1, most=100_000)
    views: int = bounded(12, least=2, most=1000)
    evaluate_every: int = bounded(500, least=0, most=10_000_000)
    network: KeypointNetConfig = field(default_factory=lambda: KeypointNetConfig(width=32, stride=4))
    training: KeypointNetTrainingConfig = field(
        default_factory=lambda: KeypointNetTrainingConfig(
            loss=KeypointNetLossWeights(consistency=2.0, pose=2.0, silhouette=0.2, variance=0.2)
        )
    )

    def __post_init__(self) -> None:
        check_options(self, "")
        if self.category not in CATEGORIES:
            raise unknown("category", self.category, CATEGORIES)
        if self.training.supervised and self.network.keypoints != LANDMARKS:
            problem = f"to learn {LANDMARKS} landmarks takes {LANDMARKS} keypoints, not {self.network.keypoints}"
            raise OptionError("network", "keypoints", f"do not fit: {problem}")

    @property
    def home(self) -> str:
        """Where such runs are, in ``runs``."""
        return self.category

    @property
    def label(self) -> str:
        """What is done, for the names of run folders."""
        return "supervised" if self.training.supervised else "keypointnet"
