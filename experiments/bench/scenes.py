"""What is looked at in the benchmark."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym

from envs.cameras import CameraSpec
from envs.errors import UserError
from envs.tasks.metaworld import PAPER_CAMERAS


@dataclass(frozen=True)
class BenchScene:
    """An environment after its reset, and how it is seen.

    :param name: in tables.
    :param env: with ``model``, ``data`` and ``fullpath``.
    :param cameras: the views.
    :param pixels: height and width of a view.
    """

    name: str
    env: gym.Env
    cameras: Sequence[CameraSpec]
    pixels: int


def reach(pixels: int = 64) -> BenchScene:
    """``reach-multiview`` from its own three cameras."""
    from envs.tasks.reach import ReachEnv

    env = ReachEnv()
    env.reset(seed=0)
    return BenchScene(f"reach-multiview, 3 views of {pixels} px", env, ReachEnv.cameras, pixels)


def hammer(pixels: int = 128) -> BenchScene:
    """Meta-World's hammer from the cameras of Keypoint3D: 67,000 triangles.

    :raises UserError: where Meta-World is not installed.
    """
    if importlib.util.find_spec("metaworld") is None:
        raise UserError("the benchmark's hammer scene needs Meta-World: pip install -c constraints.txt metaworld")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS["hammer-v3"]()
    env._freeze_rand_vec, env._set_task_called = False, True  # any of its tasks will do
    env.seeded_rand_vec = True  # by the seed, and not by numpy's global generator
    env.seed(0)
    env.reset(seed=0)
    return BenchScene(f"Meta-World hammer, 3 views of {pixels} px", env, PAPER_CAMERAS, pixels)


def ring(count: int, radius: float = 1.0) -> list[CameraSpec]:
    """Cameras on a circle about the reach task's workspace.

    :param count: how many.
    :param radius: metres.
    """
    angles = [2.0 * math.pi * number / count for number in range(count)]
    return [
        CameraSpec(
            f"ring{number}",
            (0.55 + radius * math.cos(angle), radius * math.sin(angle), 0.6),
            look_at=(0.55, 0.0, 0.22),
        )
        for number, angle in enumerate(angles)
    ]
