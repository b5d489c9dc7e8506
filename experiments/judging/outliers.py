"""Acting on keypoints of which a view that contradicts all others has no part: an option of evaluate and video."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from stable_baselines3.common.policies import BasePolicy

from agents.policies import keypoint_extractor
from envs.errors import UserError

CENTIMETRES = 100.0
LEAST_VIEWS = 3
"""Where only two views contradict each other, nobody can say which of them errs."""


def check_outliers(centimetres: float) -> None:
    """Refuse what is no tolerance.

    :param centimetres: as it was typed.
    :raises ValueError: unless it is 0 or above.
    """
    if not (math.isfinite(centimetres) and centimetres >= 0):
        raise ValueError(f"reject_outliers must be a number of centimetres from 0 on, got {centimetres}")


@contextlib.contextmanager
def rejecting_outliers(policy: BasePolicy, centimetres: float) -> Iterator[None]:
    """Inside this context a policy's keypoints leave out a view that contradicts all others.

    :param policy: on 3D keypoints of at least three views, unless nothing is asked for.
    :param centimetres: by which rays may miss each other (:meth:`kp3d_rl.keypoint3d.Keypoint3D.rejecting`); 0: nothing.
    :raises UserError: for a policy that has nothing to leave out.
    """
    if not centimetres:
        yield
        return
    extractor = keypoint_extractor(policy)
    if extractor is None or extractor.encoder.config.dimensions == "2d":
        raise UserError("--reject-outliers is for policies on 3D keypoints: this one has no views to fuse")
    if extractor.encoder.num_views < LEAST_VIEWS:
        found = f"this run has {extractor.encoder.num_views}"
        raise UserError(f"--reject-outliers needs at least {LEAST_VIEWS} cameras to tell which one errs: {found}")
    with extractor.encoder.rejecting(centimetres / CENTIMETRES):
        yield
