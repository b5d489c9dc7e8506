"""What a policy loses when something is taken from its views: the conditions of ``evaluate --ablate``.

A condition is a context manager: inside it the policy is evaluated, afterwards everything is as before. It is given the
policy and the environments, and gives the environments to play in and what to change in the observations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym
import numpy as np

from envs.colours import ShuffledColours
from envs.errors import UserError
from envs.moved_camera import MovedCamera
from experiments.judging.evaluation import Observation, Transform, stack
from kp3d_rl.keypoint3d import Keypoint3D

Environments = Sequence[gym.Env]
Condition = Callable[[Any, Environments], AbstractContextManager[tuple[Environments, Transform | None]]]

VIEWS = ("images", "previous", "camera_poses")
"""All of an observation that says what is seen."""
TOLERANCE = 0.04
"""Metres by which rays may miss each other where outliers are left out: twice what they do in trained keypoints."""
OTHER_SEED = 40_000_000
"""Seed of the episode whose first views are shown while there is no other one yet; no episode is played with it."""


def conditions(env: gym.Env, ablate: bool) -> dict[str, Condition]:
    """The conditions to evaluate in, by name, in the order of the table.

    :param env: one of the environments.
    :param ablate: whether anything is taken away.
    :raises UserError: where views are to be changed and there are none.
    """
    found: dict[str, Condition] = {"as trained": as_trained}
    if not ablate:
        return found
    if "images" not in env.observation_space.spaces:
        raise UserError("--ablate blacks out the views, but this run acts on the simulator's state")
    found["blacked out"] = black
    found["keypoints permuted across states"] = permuted
    cameras = env.get_wrapper_attr("rig").names
    if len(cameras) > 1:  # of a single one "blacked out" says all
        found |= {f"without camera {name}": without_camera(view) for view, name in enumerate(cameras)}
        fixed = "camera_poses" not in env.observation_space.spaces
        found |= {f"camera {name} moved": moved_camera(view, tell=fixed) for view, name in enumerate(cameras)}
        if fixed:  # where cameras move, the observation says where they are
            found |= {f"camera {name} moved, untold": moved_camera(view, False) for view, name in enumerate(cameras)}
        if len(cameras) > 2:
            rejected = {
                f"camera {n} moved, outliers left out": rejecting(view, fixed) for view, n in enumerate(cameras)
            }
            found |= rejected
    found["shuffled scene colours"] = shuffled_colours
    return found


@contextlib.contextmanager
def as_trained(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
    """Nothing is changed."""
    yield envs, None


@contextlib.contextmanager
def black(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
    """Every view is black: what the policy can do without seeing."""
    yield envs, lambda observation, seeds: blacked_out(observation)


@contextlib.contextmanager
def permuted(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
    """The policy sees another state than the one that it acts in.

    All that it knows of its views are keypoints, so that swapping views across states permutes the keypoints.
    """
    first, _ = envs[0].reset(seed=OTHER_SEED)
    yield envs, SwappedViews(OTHER_SEED, stack([first]))


def without_camera(view: int) -> Condition:
    """The condition in which one camera is missing: black for every policy, and left out of the keypoints' fusion.

    :param view: index of the camera.
    """

    @contextlib.contextmanager
    def condition(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
        encoder = getattr(getattr(policy, "features_extractor", None), "encoder", None)
        missing = encoder.without(view) if isinstance(encoder, Keypoint3D) else contextlib.nullcontext()
        with missing:
            yield envs, lambda observation, seeds: blacked_out(observation, view)

    return condition


def moved_camera(view: int, tell: bool) -> Condition:
    """The condition in which one camera stands 10 cm and 10 degrees beside its place, elsewhere in each episode.

    :param view: index of the camera.
    :param tell: whether the policy is told the true poses of all cameras. Only keypoints make anything of them.
    """

    @contextlib.contextmanager
    def condition(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
        moved = [ToldPoses(env, view) for env in envs]
        told = TellPoses(moved) if tell else None
        try:
            yield moved, told
        finally:
            for env in moved:
                env.restore()

    return condition


def rejecting(view: int, tell: bool) -> Condition:
    """The same, where keypoints leave out of the fusion what one view says against all others.

    :param view, tell: as of :func:`moved_camera`.
    """

    @contextlib.contextmanager
    def condition(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
        encoder = getattr(getattr(policy, "features_extractor", None), "encoder", None)
        strict = encoder.rejecting(TOLERANCE) if isinstance(encoder, Keypoint3D) else contextlib.nullcontext()
        with strict, moved_camera(view, tell)(policy, envs) as shown:
            yield shown

    return condition


class ToldPoses(MovedCamera):
    """Remembers where the cameras are in the episode of a seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As :class:`MovedCamera`."""
        result = super().reset(seed=seed, options=options)
        self.seed, self.poses = seed, self.env.get_wrapper_attr("camera_poses")()
        return result


class TellPoses:
    """Adds each episode's camera poses to its observations.

    :param envs: that the episodes are played in, each with one at a time.
    """

    def __init__(self, envs: Sequence[ToldPoses]) -> None:
        self.envs = envs

    def __call__(self, observation: Observation, seeds: Sequence[int]) -> Observation:
        """The same batch with ``camera_poses`` (B, V, 4, 4).

        :param observation: of one moment of the episodes that are still being played.
        :param seeds: of these episodes, in the order of the batch.
        """
        poses = {env.seed: env.poses for env in self.envs if hasattr(env, "seed")}
        return observation | {"camera_poses": np.stack([poses[seed] for seed in seeds])}


@contextlib.contextmanager
def shuffled_colours(policy: Any, envs: Environments) -> Iterator[tuple[Environments, Transform | None]]:
    """The scene's colours are permuted anew for each episode, by its seed, for every policy alike."""
    shuffled = [ShuffledColours(env) for env in envs]
    try:
        yield shuffled, None
    finally:
        for env in shuffled:
            env.restore()


def blacked_out(observation: Observation, view: int | None = None) -> Observation:
    """The same batch of observations with black views.

    :param observation: ``images`` (B, V, H, W, 3), with a frame stack ``previous`` too, and whatever else.
    :param view: which one; None: all.
    """
    changed = {key: observation[key].copy() for key in ("images", "previous") if key in observation}
    for images in changed.values():
        images[..., slice(None) if view is None else view, :, :, :] = 0
    return observation | changed


class SwappedViews:
    """Shows each episode the views of another one, at that moment, and never its own.

    Of the episodes that are played together each is shown its neighbour's. The last one to end has no neighbour: it is
    shown the views of an episode that is over, of the same moment or, where that episode was shorter, of its end. So is
    every episode where they are played one at a time.

    :param seed: of an episode that is not among those to be played.
    :param observation: batch of one, the beginning of that episode; shown while nothing else is remembered.
    """

    def __init__(self, seed: int, observation: Observation) -> None:
        # By seed, the views of the two episodes that began last: one of the two is always another episode than a given
        # one.
        self._remembered: dict[int, list[Observation]] = {seed: [_views(observation, 0)]}
        self._together: set[int] = set()
        self._moment = 0

    def __call__(self, observation: Observation, seeds: Sequence[int]) -> Observation:
        """Swap the views of a batch.

        :param observation: of one moment of the episodes that are still being played.
        :param seeds: of these episodes, in the order of the batch; they tell episodes apart.
        """
        self._remember(observation, seeds)
        if len(seeds) > 1:
            return observation | {key: np.roll(observation[key], 1, axis=0) for key in VIEWS if key in observation}
        other = [views for seed, views in self._remembered.items() if seed != seeds[0]][-1]
        views = other[min(self._moment, len(other) - 1)]
        return observation | {key: value[None] for key, value in views.items()}

    def _remember(self, observation: Observation, seeds: Sequence[int]) -> None:
        self._moment += 1
        if not self._together.issuperset(seeds):
            self._together, self._moment = set(seeds), 0
            begun = self._remembered | {seed: [] for seed in seeds}
            self._remembered = dict(list(begun.items())[-2:])
        for row, seed in enumerate(seeds):
            if seed in self._remembered:
                self._remembered[seed].append(_views(observation, row))


def _views(observation: Observation, row: int) -> Observation:
    """A copy of all that one row of a batch says of what is seen."""
    return {key: observation[key][row].copy() for key in VIEWS if key in observation}
