"""What a bootstrapping run sees: labelled images, unlabelled sequences and test sequences, filmed anew from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from envs import registry
from envs.cameras import CameraRig, CameraSpec
from envs.renderers import Renderer, make_renderer
from envs.scenes import hand
from envs.scenes.footage import Footage, label_hands, record_hand, split_dome
from envs.scenes.task import FilmedTask, between, own_cameras
from experiments.bootstrapping.config import HAND, BootstrapConfig
from kp3d_rl.bootstrapping.training import LabelledImages
from kp3d_rl.cameras import Rig

TEST_SEED = 1_000_000
"""Test sequences have seeds from here on, whatever the run's: all runs are judged by the same ones."""
PAPER_SIDE = 368
"""Pixels per side of the paper's crops, in which precision and errors of calibration are given."""
_SEEDS_PER_RUN = 10_000


@dataclass(frozen=True)
class Subject:
    """What is looked for.

    :param keypoints: K names.
    :param groups: K numbers, equal for points that are decided together.
    :param bones: pairs of points whose distance is about fixed.
    :param limits: (bones, 2) least and greatest of these distances, metres.
    """

    keypoints: tuple[str, ...]
    groups: tuple[int, ...]
    bones: tuple[tuple[int, int], ...] = ()
    limits: np.ndarray | None = None


class Studio(Protocol):
    """Films one subject; the same seeds give the same footage."""

    subject: Subject
    cameras: tuple[CameraSpec, ...]
    held_out: tuple[CameraSpec, ...]

    def label(self) -> Footage:
        """Images from a narrow cone of views, with the truth."""

    def sequence(self, number: int) -> Footage:
        """An unlabelled sequence, by those of ``cameras`` that are used."""

    def test(self, number: int) -> Footage:
        """A test sequence, by the cameras that the detector is judged by first, then by ``cameras``."""

    def close(self) -> None:
        """Free what was allocated."""


class HandStudio:
    """Films the hand.

    :param config: how much, and by how many cameras.
    :param renderer: draws it.
    """

    def __init__(self, config: BootstrapConfig, renderer: Renderer) -> None:
        self.config, self.renderer = config, renderer
        self.subject = Subject(hand.KEYPOINTS, hand.GROUPS, hand.BONES, hand.bone_limits())
        self.cameras, self.held_out = split_dome(config.cameras, config.held_out)

    def label(self) -> Footage:
        """See :meth:`Studio.label`."""
        return label_hands(self.config.labelled, self.config.image_size, self.config.seed, self.renderer)

    def sequence(self, number: int) -> Footage:
        """See :meth:`Studio.sequence`."""
        return self._record(
            self.cameras[: self.config.watching], self.config.frames, _SEEDS_PER_RUN * self.config.seed + number
        )

    def test(self, number: int) -> Footage:
        """See :meth:`Studio.test`."""
        return self._record((*self.held_out, *self.cameras), self.config.test_frames, TEST_SEED * 100 + number)

    def close(self) -> None:
        """See :meth:`Studio.close`."""
        self.renderer.close()

    def _record(self, cameras: Sequence[CameraSpec], frames: int, seed: int) -> Footage:
        return record_hand(cameras, frames, self.config.image_size, seed, self.renderer)


class TaskStudio:
    """Films a registered environment. It is labelled, and judged, by its own cameras; others watch it unlabelled.

    Test episodes are of the environment's test split.

    :param config: how much, and by how many cameras.
    """

    def __init__(self, config: BootstrapConfig) -> None:
        self.config = config
        self.held_out = own_cameras(config.env)
        workspace = registry.task_class(config.env).workspace
        self.cameras = between(self.held_out, workspace, config.cameras)
        everywhere = (*self.held_out, *self.cameras)
        test = FilmedTask(config.env, everywhere, config.image_size, split="test")
        if config.bodies is not None:
            test.choose([name.strip() for name in config.bodies.split(",")])
        else:
            test.choose(test.bodies_in_sight())
        names = test.bodies
        self._tasks = {"test": test}
        for name, cameras in (("label", self.held_out), ("sequence", self.cameras[: config.watching])):
            self._tasks[name] = FilmedTask(config.env, cameras, config.image_size)
            self._tasks[name].choose(names)
        self.subject = Subject(names, tuple(range(len(names))))

    def label(self) -> Footage:
        """See :meth:`Studio.label`."""
        every, seed = 10, _SEEDS_PER_RUN * self.config.seed + 5_000  # each image from an episode of its own
        shot = self._tasks["label"].record(every * self.config.labelled, seed, longest=every)
        kept = slice(every - 1, None, every)
        return Footage(shot.images[kept], shot.points[kept], shot.hidden[kept], shot.rig)

    def sequence(self, number: int) -> Footage:
        """See :meth:`Studio.sequence`."""
        return self._tasks["sequence"].record(self.config.frames, _SEEDS_PER_RUN * self.config.seed + number)

    def test(self, number: int) -> Footage:
        """See :meth:`Studio.test`."""
        return self._tasks["test"].record(self.config.test_frames, TEST_SEED * 100 + number)

    def close(self) -> None:
        """See :meth:`Studio.close`."""
        for task in self._tasks.values():
            task.close()


def make_studio(config: BootstrapConfig) -> Studio:
    """Of the run's subject.

    :param config: of the run.
    :raises UserError: for an unknown environment, or where the hand's files are missing.
    """
    return HandStudio(config, make_renderer()) if config.env == HAND else TaskStudio(config)


def to_rig(cameras: CameraRig) -> Rig:
    """Cameras as torch has them, float64."""
    return Rig.from_arrays(cameras.intrinsics, cameras.world_from_camera, cameras.height, cameras.width, torch.float64)


def calibrated(rig: Rig, noise: float, seed: int) -> Rig:
    """The rig as somebody measured it: each camera is turned a little; where it stands is known.

    :param rig: as it is.
    :param noise: pixels of an image of 368 rows by which points are off in it, sideways and upwards: the
        standard deviation over cameras.
    :param seed: of the errors.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(rig.num_views, 3, generator=generator, dtype=torch.float64)
    focal = rig.intrinsics[..., 0, 0].unsqueeze(-1)
    skew = torch.zeros(rig.num_views, 3, 3, dtype=torch.float64)
    x, y, z = (noise * rig.height / PAPER_SIDE / focal * turn).unbind(-1)
    skew[:, 2, 1], skew[:, 1, 2], skew[:, 0, 2], skew[:, 2, 0], skew[:, 1, 0], skew[:, 0, 1] = x, -x, y, -y, z, -z
    poses = rig.world_from_camera.clone()
    poses[:, :3, :3] = poses[:, :3, :3] @ torch.matrix_exp(skew)
    return rig.with_poses(poses)


def truth(footage: Footage, views: slice = slice(None)) -> Tensor:
    """(T, V, K, 2) float32 where the keypoints really are, pixels; NaN in views that hide all of them."""
    uv = to_rig(footage.rig).project(torch.as_tensor(footage.points))[0]
    hidden = torch.as_tensor(footage.hidden)[..., None, None]
    return torch.where(hidden, torch.nan, uv).float()[:, views]


def as_labelled(footage: Footage) -> LabelledImages:
    """All images of a footage with their true labels."""
    images, uv = torch.as_tensor(footage.images), truth(footage)
    return LabelledImages(images.flatten(0, 1), uv.flatten(0, 1))
