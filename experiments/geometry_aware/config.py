"""The options of a geometry-aware run: the command line and ``config.yaml`` at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kp3d_rl.bootstrapping.detector import DetectorConfig
from kp3d_rl.bootstrapping.training import STRONG, DetectorTrainingConfig
from kp3d_rl.geometry_aware.network import GeometryAwareNetworkConfig
from kp3d_rl.geometry_aware.training import GeometryAwareTrainingConfig
from kp3d_rl.options import OptionError, bounded, check_options

HUMAN = "human"
"""Where such runs are, in ``runs``."""


@dataclass(frozen=True)
class GeometryAwareRunConfig:
    """One geometry-aware run.

    "--preset paper" stands for sizes that take a GPU; "--preset detected" sees people by a 2D detector of its own;
    "--preset smoke" takes a minute on two cores.

    :param run: name of the run folder ``runs/human/<run>``; by default what is done, the seed and the time.
    :param seed: of all that is random: poses, bodies, noise, networks and batches.
    :param device: "auto" takes a GPU where there is one.
    :param threads: threads of the network library; 0 takes all cores.
    :param source: of 2D joints: "exact", with noise; or "detector", which learns from images with 2D labels first.
    :param noise: standard deviation of exact joints, millimetres at the pelvis' depth.
    :param virtual: learn from cameras anywhere about the person instead of those on the ring alone; exact joints only.
    :param views: of each pose, by virtual cameras.
    :param cameras: on the ring.
    :param held_out: further ones between them, at least two, that results are judged by.
    :param poses: random ones to learn from.
    :param bodies: that take them.
    :param test_bodies: others that results are judged by.
    :param labelled: poses with 2D labels that the detector learns from, in each camera of the ring.
    :param image_size: pixels per side of the images that the detector sees.
    :param least_confidence: of a detected joint; one that is below is missing.
    :param evaluate_every: steps between judgements; 0 judges at the end alone.
    :param autoencoder: also train what results are compared with: the same network without rotation.
    :param network: the networks.
    :param training: how they learn.
    :param detector: the 2D detector.
    :param detecting: how it learns.
    """

    run: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = bounded(0, least=0, most=1024)
    source: Literal["exact", "detector"] = "exact"
    noise: float = bounded(11.0, least=0, most=1000)
    virtual: bool = True
    views: int = bounded(8, least=2, most=1000)
    cameras: int = bounded(8, least=2, most=64)
    held_out: int = bounded(2, least=2, most=32)
    poses: int = bounded(50_000, least=2, most=10_000_000)
    bodies: int = bounded(20, least=1, most=10_000)
    test_bodies: int = bounded(5, least=1, most=10_000)
    labelled: int = bounded(500, least=1, most=1_000_000)
    image_size: int = bounded(96, least=32, most=1024)
    least_confidence: float = bounded(0.1, least=0, most=1)
    evaluate_every: int = bounded(1000, least=0, most=10_000_000)
    autoencoder: bool = True
    network: GeometryAwareNetworkConfig = field(default_factory=lambda: GeometryAwareNetworkConfig(points=64))
    training: GeometryAwareTrainingConfig = field(default_factory=GeometryAwareTrainingConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    detecting: DetectorTrainingConfig = field(
        default_factory=lambda: DetectorTrainingConfig(steps=1500, augmentation=STRONG)
    )

    def __post_init__(self) -> None:
        check_options(self, "")
        if not 0 <= self.seed < 1_000_000:
            raise OptionError(
                "", "seed", f"must lie between 0 and 999999, got {self.seed}: test bodies have other seeds"
            )
        if self.bodies > self.poses:
            raise OptionError("", "bodies", f"must be at most the number of poses, {self.poses}, got {self.bodies}")

    @property
    def home(self) -> str:
        """Where such runs are, in ``runs``."""
        return HUMAN

    @property
    def label(self) -> str:
        """What is done, for the names of run folders."""
        return f"geometry-aware-{self.source}"
