"""Episodes of a policy as arrays: what keypoints are judged on, and what the representation is trained on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agents.finite import require_finite
from agents.vec_env import held_decisions
from envs.shapes import BodyShape
from experiments.judging.evaluation import Observation, Predict, stack

Behaviour = Literal["random", "scripted", "mixed"]
Act = Callable[[int, Observation], np.ndarray]
"""Number of the step in the episode and observation to action."""


@dataclass(frozen=True)
class Episodes:
    """E episodes, each seen at T instants that are spread evenly over it.

    :param images: (E, T, V, H, W, 3) uint8.
    :param camera_poses: (E, T, V, 4, 4) where cameras move, else None.
    :param bodies: (E, T, B, 4, 4) from the frames of bodies to the workspace frame, metres.
    :param shapes: what is seen of these B bodies, and their names.
    """

    images: np.ndarray
    camera_poses: np.ndarray | None
    bodies: np.ndarray
    shapes: tuple[BodyShape, ...]

    @property
    def body_names(self) -> tuple[str, ...]:
        """The B names."""
        return tuple(shape.name for shape in self.shapes)

    def positions(self, names: Sequence[str]) -> np.ndarray:
        """(E, T, len(names), 3) positions of some of the bodies, metres."""
        return self.bodies[..., :3, 3][:, :, [self.body_names.index(name) for name in names]]

    def corners(self) -> np.ndarray:
        """(E T, B, 8, 3) corners of boxes around the bodies, metres, workspace frame."""
        poses = self.bodies.reshape(-1, len(self.shapes), 4, 4)
        own = np.stack([shape.corners for shape in self.shapes])
        return np.einsum("tbij,bcj->tbci", poses[..., :3, :3], own) + poses[:, :, None, :3, 3]

    def distances(self, points: np.ndarray) -> np.ndarray:
        """From points to all bodies' surfaces.

        :param points: (E T, K, 3) of every instant, metres, workspace frame.
        :return: (E T, K, B) metres; infinite to a frame without a shape, as an end effector is: nothing sits there.
        """
        poses = self.bodies.reshape(-1, len(self.shapes), 4, 4)
        found = np.full((*points.shape[:2], len(self.shapes)), np.inf)
        for number, shape in enumerate(self.shapes):
            if not shape.geoms:
                continue
            rotation, position = poses[:, number, :3, :3], poses[:, number, None, :3, 3]
            found[..., number] = shape.distance(np.einsum("tij,tki->tkj", rotation, points - position))
        return found


def act_randomly(env: gym.Env, seed: int) -> Act:
    """Random actions, each held for some steps, as in the warm-up of training.

    :param env: whose action space is drawn from.
    :param seed: of the draws.
    """
    env.action_space.seed(seed)
    held: list[np.ndarray] = []
    hold = held_decisions(env)

    def act(step: int, observation: Observation) -> np.ndarray:
        if step % hold == 0 or not held:
            held[:] = [env.action_space.sample()]
        return held[0]

    return act


def act_by_script(env: gym.Env) -> Act:
    """The task's own script.

    :param env: a ``MultiViewObservation``; where its task has no script, the first action raises a UserError.
    """
    return lambda step, observation: env.get_wrapper_attr("scripted_action")()


def act_by(predict: Predict) -> Act:
    """A policy's actions.

    :param predict: batched observation to batched action.
    """
    return lambda step, observation: predict(stack([observation]))[0]


def behaviour(name: Behaviour, env: gym.Env, seed: int, number: int) -> Act:
    """How one episode is acted.

    :param name: "mixed" acts at random in every other episode and by script in the others.
    :param env: of the episode.
    :param seed: of the episode.
    :param number: of the episode, from 0.
    """
    by_script = name == "scripted" or (name == "mixed" and number % 2 == 1)
    return act_by_script(env) if by_script else act_randomly(env, seed)


class Actors:
    """Actions for several environments side by side: held random ones, or the task's script.

    :param name: in "mixed", the first half of the environments goes by the script.
    :param env: vectorised, and reset: a script looks at the state.
    :param seed: of the random actions.
    :raises UserError: where there is no script, but one is asked for.
    """

    def __init__(self, name: Behaviour, env: VecEnv, seed: int) -> None:
        self.env, self.held, self.hold = env, np.zeros(0), held_decisions(env)
        self.scripted = list(range({"random": 0, "mixed": env.num_envs // 2, "scripted": env.num_envs}[name]))
        env.action_space.seed(seed)
        if name != "random":
            env.env_method("scripted_action", indices=[0])

    def __call__(self, step: int) -> np.ndarray:
        """(N, ...) actions for a step, counted from 0."""
        if step % self.hold == 0:
            self.held = np.stack([self.env.action_space.sample() for _ in range(self.env.num_envs)])
        actions = self.held.copy()
        if self.scripted:
            actions[self.scripted] = self.env.env_method("scripted_action", indices=self.scripted)
        return actions


def collect(
    env: gym.Env,
    seeds: Sequence[int],
    act: Callable[[int, int], Act],
    steps: int,
    instants: int,
    names: Sequence[str],
    on_episode: Callable[[int, int], None] = lambda done, total: None,
    blind: bool = False,
) -> Episodes:
    """Play one episode for each seed and keep some instants of it.

    :param env: a ``MultiViewObservation`` that observes images.
    :param seeds: of the episodes.
    :param act: from seed and number of an episode to its actions.
    :param steps: longest part of an episode that is played.
    :param instants: T, how many are kept of each; of an episode with fewer, some are kept twice.
    :param names: of the bodies whose places are kept.
    :param on_episode: told after each episode how many of how many are done.
    :param blind: whether the actions do without the images; then only those that are kept are rendered.
    """
    space = env.observation_space.spaces
    moving = "camera_poses" in space
    images = np.empty((len(seeds), instants, *space["images"].shape), np.uint8)
    poses = np.empty((len(seeds), instants, *space["camera_poses"].shape), np.float32) if moving else None
    bodies = np.empty((len(seeds), instants, len(names), 4, 4))
    for number, seed in enumerate(seeds):
        select = _seen_instants if blind else _instants
        moments = select(env, seed, functools.partial(act, seed, number), steps, instants, names)
        for instant, (observation, placed) in enumerate(moments):
            images[number, instant], bodies[number, instant] = observation["images"], placed
            if poses is not None:
                poses[number, instant] = observation["camera_poses"]
        on_episode(number + 1, len(seeds))
    return Episodes(images, poses, bodies, env.get_wrapper_attr("body_shapes")(names))


Moment = tuple[Observation, np.ndarray]
"""An observation, and the (B, 4, 4) poses of bodies, metres."""


def _instants(
    env: gym.Env, seed: int, act: Callable[[], Act], steps: int, instants: int, names: Sequence[str]
) -> list[Moment]:
    """Instants that are spread evenly over an episode."""
    moments = list(play_episode(env, seed, act(), steps, names))
    return [moments[index] for index in _spread(len(moments), instants)]


def _seen_instants(
    env: gym.Env, seed: int, act: Callable[[], Act], steps: int, instants: int, names: Sequence[str]
) -> list[Moment]:
    """The same by playing twice, to see how long the episode is, and then to render at those instants alone."""
    env.images_are_deferred = True
    try:
        chosen = _spread(sum(1 for _ in play_episode(env, seed, act(), steps, ())), instants)
        seen = {
            step: (observation | {"images": env.render_views()}, bodies)
            for step, (observation, bodies) in enumerate(play_episode(env, seed, act(), steps, names))
            if step in chosen
        }
    finally:
        env.images_are_deferred = False
    return [seen[step] for step in chosen]


def _spread(length: int, instants: int) -> np.ndarray:
    return np.linspace(0, length - 1, instants).round().astype(int)


def visible_bodies(env: gym.Env, wanted: Sequence[str] = ()) -> list[str]:
    """Names of the bodies that a keypoint can sit on: those with a shape, and those that are asked for.

    :param env: a ``MultiViewObservation``.
    :param wanted: bodies that are of interest though they may be but a frame, such as the point between two fingers.
    """
    model = env.get_wrapper_attr("synced_visual")().model
    return [name for name in env.get_wrapper_attr("body_names") if name in wanted or model.body(name).geomnum[0]]


def play_episode(
    env: gym.Env, seed: int, act: Act, steps: int, names: Sequence[str]
) -> Iterator[tuple[Observation, np.ndarray]]:
    """Every instant of an episode, the reset first; the environment stands at that instant when it is handed out.

    :param env: a ``MultiViewObservation``.
    :param seed: of the reset.
    :param act: chooses the actions.
    :param steps: longest part of the episode that is played.
    :param names: of B bodies.
    :return: observations, and (B, 4, 4) from the bodies' frames to the workspace frame, metres.
    """
    observation, _ = env.reset(seed=int(seed))
    over = False
    for step in range(steps + 1):
        require_finite("observation", stack([observation]))
        yield observation, env.get_wrapper_attr("body_poses")(names)
        if over or step == steps:
            return
        observation, _, terminated, truncated, _ = env.step(act(step, observation))
        over = terminated or truncated
