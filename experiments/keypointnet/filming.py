"""What a KeypointNet run sees: objects to learn from and others to be judged by, filmed anew from seeds."""

from __future__ import annotations

import numpy as np
import torch

from envs.renderers import Renderer
from envs.scenes.object_views import DISTANCE, ObjectViews, record_category
from experiments.keypointnet.config import KeypointNetRunConfig
from experiments.training.progress import Progress
from kp3d_rl.keypointnet.training import ViewsOfObjects

TEST_SEED = 1_000_000
"""Test objects have seeds from here on, whatever the run's: all runs are judged by the same ones."""


def film_training(config: KeypointNetRunConfig, renderer: Renderer) -> ViewsOfObjects:
    """Objects to learn from.

    :param config: how many, and of what.
    :param renderer: draws them.
    """
    return as_tensors(_film(config, config.shapes, config.seed, renderer, "filming"))


def film_test(config: KeypointNetRunConfig, renderer: Renderer, block: int = 0) -> ViewsOfObjects:
    """Objects that no training sees.

    :param config: how many, and of what.
    :param renderer: draws them.
    :param block: of them: blocks never overlap, and runs are judged by block 0 while they learn.
    """
    return as_tensors(_film(config, config.test_shapes, TEST_SEED + block, renderer, "filming test objects"))


def as_tensors(views: ObjectViews) -> ViewsOfObjects:
    """Views as torch has them."""
    return ViewsOfObjects(
        torch.as_tensor(views.images),
        torch.as_tensor(views.masks),
        torch.as_tensor(views.poses.astype(np.float32)),
        torch.as_tensor(views.intrinsics.astype(np.float32)),
        DISTANCE,
        torch.as_tensor(views.landmarks.astype(np.float32)),
    )


def _film(config: KeypointNetRunConfig, count: int, seed: int, renderer: Renderer, what: str) -> ObjectViews:
    show = Progress(what, "objects")
    return record_category(config.category, count, config.views, config.image_size, seed, renderer, show)
