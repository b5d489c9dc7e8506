"""The options of a bootstrapping run: the command line and ``config.yaml`` at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from kp3d_rl.bootstrapping.detector import LEAST_SIDE, DetectorConfig
from kp3d_rl.bootstrapping.plausibility import PlausibilityConfig
from kp3d_rl.bootstrapping.selection import SelectionConfig
from kp3d_rl.bootstrapping.training import STRONG, AugmentationConfig, DetectorTrainingConfig
from kp3d_rl.options import OptionError, bounded, check_options
from kp3d_rl.triangulation import RansacConfig

HAND = "hand"
"""What is filmed unless an environment is named: the hand of :mod:`envs.scenes.hand`."""


@dataclass(frozen=True)
class BootstrapConfig:
    """One bootstrapping run.

    "--preset smoke" stands for minutes on two cores, to see that all works; its numbers say nothing.

    :param env: "hand", or a registered environment, whose bodies become keypoints.
    :param run: name of the run folder ``runs/<env>/<run>``; by default the method, the seed and the time.
    :param seed: of all that is random: what is filmed for training, networks and batches.
    :param device: "auto" takes a GPU where there is one.
    :param threads: threads of the network library; 0 takes all cores.
    :param method: "bootstrapping"; or what it is compared with: "self-training", labels from each single view's own
        detections; "random", frames taken at random, unchecked; "oracle", true labels for the images that ``reference``
        chose.
    :param reference: another run of the same options whose first detector is taken over instead of trained again.
    :param bodies: names of an environment's bodies that become keypoints, separated by commas; by default those with a
        joint and those that the task is about.
    :param rounds: after the first training.
    :param cameras: that stand about.
    :param use: of how many of these, spread out, unlabelled sequences are used; by default all.
    :param held_out: further ones between them that the detector of a hand is judged by; an environment's is by its own.
    :param image_size: pixels per side.
    :param sequences: unlabelled ones.
    :param frames: of each.
    :param labelled: images of a hand with true labels, all from a narrow cone of views; or instants of an environment,
        labelled in all of its own cameras.
    :param test_sequences: others, in other rooms, that the detector is judged by.
    :param test_frames: of each.
    :param calibration_noise: pixels, of an image of 368 rows, by which the cameras' poses are wrong, on average, where
        points are triangulated.
    :param first_steps: gradient steps on the labelled images alone.
    :param first_augmentation: of these steps: few images, and of few views, are to stand for all.
    :param detector: the network.
    :param training: of each round.
    :param ransac: triangulation.
    :param plausibility: checks.
    :param selection: of frames.
    """

    env: str = HAND
    run: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = bounded(0, least=0, most=1024)
    method: Literal["bootstrapping", "self-training", "random", "oracle"] = "bootstrapping"
    reference: str | None = None
    bodies: str | None = None
    rounds: int = bounded(3, least=0, most=1000)
    cameras: int = bounded(24, least=2, most=64)
    use: int | None = bounded(None, least=2, most=64)
    held_out: int = bounded(6, least=1, most=32)
    image_size: int = bounded(96, least=LEAST_SIDE, most=1024)
    sequences: int = bounded(90, least=1, most=5000)
    frames: int = bounded(40, least=1, most=1_000_000)
    labelled: int = bounded(2000, least=1, most=1_000_000)
    test_sequences: int = bounded(6, least=1, most=10_000)
    test_frames: int = bounded(40, least=1, most=100_000)
    calibration_noise: float = bounded(0.5, least=0, most=100)
    first_steps: int = bounded(1500, least=1, most=10_000_000)
    first_augmentation: AugmentationConfig = field(default_factory=lambda: STRONG)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    training: DetectorTrainingConfig = field(default_factory=DetectorTrainingConfig)
    ransac: RansacConfig = field(default_factory=lambda: RansacConfig(threshold=3.0, least_confidence=0.5, trust=8.0))
    plausibility: PlausibilityConfig = field(default_factory=PlausibilityConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        check_options(self, "")
        if not 0 <= self.seed < 10_000:
            raise OptionError(
                "", "seed", f"must lie between 0 and 9999, got {self.seed}: test sequences have other seeds"
            )
        needed = self.ransac.least_inliers
        if self.method == "bootstrapping":
            needed = max(needed, self.plausibility.least_inliers)
        if self.watching < needed:
            problem = f"are too few: {needed} must agree on a point (least_inliers of ransac and plausibility)"
            raise OptionError("", "cameras" if self.use is None else "use", f"{problem}, got {self.watching}")
        if self.use is not None and self.use > self.cameras:
            raise OptionError("", "use", f"must be at most the number of cameras, {self.cameras}, got {self.use}")
        if self.method == "oracle" and self.reference is None:
            raise OptionError("", "reference", "must name a run: the oracle labels the images that another run chose")
        if self.bodies is not None and self.env == HAND:
            raise OptionError("", "bodies", "are those of an environment: the hand has its own 21 keypoints")

    @property
    def watching(self) -> int:
        """How many cameras film unlabelled sequences."""
        return self.cameras if self.use is None else self.use

    @property
    def home(self) -> str:
        """Where such runs are, in ``runs``."""
        return self.env

    @property
    def label(self) -> str:
        """What is done, for the names of run folders."""
        return self.method

    def training_of(self, number: int) -> DetectorTrainingConfig:
        """How the detector of a round is trained.

        :param number: of the round, 0 the first.
        """
        if number:
            return self.training
        return replace(self.training, steps=self.first_steps, augmentation=self.first_augmentation)
