"""Who a geometry-aware run sees, and how: exact 2D joints with noise, or a detector's."""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from envs.errors import UserError
from envs.renderers import Renderer
from envs.scenes import clips
from envs.scenes.people import EXTENT, People, draw_people, play_people, record_people, ring, virtual_places
from experiments.geometry_aware.config import GeometryAwareRunConfig
from experiments.training.progress import Progress
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.bootstrapping.training import LabelledImages
from kp3d_rl.geometry_aware.skeleton import SkeletonViews, see

TEST_SEED = 1_000_000
"""Test bodies have seeds from here on, whatever the run's: all runs are judged by the same ones."""
_LABELLED_SEED = 500_000


class Eyes(Protocol):
    """Tells where joints are in views."""

    def views(self, people: People, places: np.ndarray, seed: int) -> SkeletonViews:
        """What is seen.

        :param people: N poses.
        :param places: (C, 3) of cameras, or (N, C, 3), metres from the pelvis.
        :param seed: of noise, or of how people and rooms look.
        """


class ExactEyes:
    """The truth with noise on it.

    :param config: for noise and size.
    """

    def __init__(self, config: GeometryAwareRunConfig) -> None:
        self.config = config

    def views(self, people: People, places: np.ndarray, seed: int) -> SkeletonViews:
        """See :meth:`Eyes.views`."""
        views = exactly(people, places, self.config.network.size)
        generator = torch.Generator().manual_seed(seed)
        pixels = self.config.noise / 1000 / EXTENT * views.size
        noise = pixels * torch.randn(views.uv.shape, generator=generator)
        return SkeletonViews(views.uv + noise, views.rotations, views.joints, views.size)


class DetectorEyes:
    """Joints as a detector finds them in images.

    :param config: for sizes.
    :param detector: that finds them.
    :param renderer: draws the images.
    """

    def __init__(self, config: GeometryAwareRunConfig, detector: KeypointDetector, renderer: Renderer) -> None:
        self.config, self.detector, self.renderer = config, detector, renderer

    def views(self, people: People, places: np.ndarray, seed: int) -> SkeletonViews:
        """See :meth:`Eyes.views`; only cameras that are the same for all people have images."""
        truth = exactly(people, places, self.config.network.size)
        side = self.config.image_size
        show, done = Progress("detecting", "poses"), 0
        uv = torch.empty_like(truth.uv)
        for body in range(len(people.shapes)):  # all images of all people would take too much memory
            mine = np.flatnonzero(people.bodies == body)
            images = record_people(people_at(people, mine), places, side, seed, self.renderer)
            found, confidence = self.detector.detect(torch.as_tensor(images).flatten(0, 1))
            found[confidence < self.config.least_confidence] = float("nan")
            uv[mine] = found.cpu().view(len(mine), *uv.shape[1:]) * (truth.size / side)
            done += len(mine)
            show(done, len(people))
        return SkeletonViews(uv, truth.rotations, truth.joints, truth.size)


def exactly(people: People, places: np.ndarray, size: int) -> SkeletonViews:
    """The truth of what cameras see.

    :param people: N poses.
    :param places: (C, 3) or (N, C, 3) of cameras, metres from the pelvis.
    :param size: pixels per side.
    """
    joints = torch.as_tensor(people.joints, dtype=torch.float32)
    where = torch.as_tensor(places, dtype=torch.float32).expand(len(joints), *places.shape[-2:])
    return SkeletonViews(*see(joints, where, EXTENT, size), joints, size)


def people_at(people: People, rows: np.ndarray) -> People:
    """Some of the people."""
    return People(people.shapes, people.bodies[rows], people.rotations[rows], people.joints[rows])


def people_to_learn_from(config: GeometryAwareRunConfig) -> People:
    """Random poses made from training clips."""
    show = Progress("drawing poses", "poses")
    return draw_people(read(clips.TRAINING), config.poses, config.bodies, config.seed, show)


def views_to_learn_from(config: GeometryAwareRunConfig, eyes: Eyes, people: People) -> SkeletonViews:
    """What is seen of them; poses that cannot be used are counted."""
    places, _ = ring(config.cameras, config.held_out)
    if config.virtual and config.source == "exact":
        rng = np.random.default_rng([config.seed, 3])
        places = virtual_places(len(people) * config.views, rng).reshape(len(people), config.views, 3)
    return said_usable(eyes.views(people, places, config.seed), "to learn from")


def people_to_judge_by(config: GeometryAwareRunConfig, names: tuple[str, ...], block: int = 0) -> People:
    """Frames of other clips by bodies that no training sees.

    :param config: how many bodies.
    :param names: of the clips.
    :param block: of bodies, and of where they look; runs are judged by block 0 while they learn.
    """
    played = read(names)
    return play_people(played, sum(len(clip) for clip in played), config.test_bodies, TEST_SEED + block)


def said_usable(views: SkeletonViews, what: str) -> SkeletonViews:
    """Those that can be used; how many cannot is said.

    :param views: N poses.
    :param what: they are for, as messages have it.
    :raises UserError: where none can be used.
    """
    kept, skipped = views.usable()
    why = "a view misses the root or too many joints"
    if not len(kept):
        raise UserError(f"none of {len(views)} poses {what} can be used: of each, {why}")
    if skipped:
        print(f"skipped {skipped} of {len(views)} poses {what}: {why}", file=sys.stderr)
    return kept


def labelled_images(config: GeometryAwareRunConfig, renderer: Renderer) -> LabelledImages:
    """Images with true 2D joints, by the cameras of the ring, that the detector learns from.

    :param config: how many.
    :param renderer: draws them.
    """
    seed = _LABELLED_SEED + config.seed
    people = draw_people(read(clips.TRAINING), config.labelled, min(config.bodies, config.labelled), seed)
    places, _ = ring(config.cameras, config.held_out)
    show = Progress("filming people with 2D labels", "poses")
    images = record_people(people, places, config.image_size, seed, renderer, show)
    truth = exactly(people, places, config.image_size)
    return LabelledImages(torch.as_tensor(images).flatten(0, 1), truth.uv.flatten(0, 1))


def one_view(views: SkeletonViews, camera: int) -> SkeletonViews:
    """All poses in one of the views."""
    part = slice(camera, camera + 1)
    return SkeletonViews(views.uv[:, part], views.rotations[:, part], views.joints, views.size)


def as_inputs(views: SkeletonViews) -> tuple[Tensor, Tensor]:
    """2D joints relative to the root, and the poses in the cameras' frames, of all views one after the other.

    :return: (N C, 2 J) pixels, NaN where a joint is missing, and (N C, J, 3) metres.
    """
    relative = views.uv - views.uv[..., :1, :]
    return relative.flatten(0, 1).flatten(1), views.in_cameras().flatten(0, 1)


def read(names: tuple[str, ...]) -> list[clips.Clip]:
    """Clips by name."""
    return [clips.read_clip(name) for name in names]
