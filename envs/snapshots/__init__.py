"""The whole state of an environment as plain values and arrays, so that its episodes go on in another process.

A state is a tree of dicts with text as keys, lists, texts, numbers, bools, None and NumPy arrays: nothing in it would
ever have to be unpickled. It may come from anywhere, so its form is checked before it is used.

Environments with methods ``save_state() -> dict`` and ``load_state(state) -> observation`` (the present one) tell their
state themselves, as :class:`envs.tasks.arm.ArmEnv` does. All others are brought back by :class:`EpisodeLog`, which
plays their episode again.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import UserError
from envs.snapshots.forms import require_finite_array, require_form, require_number
from envs.snapshots.physics import FreshModel, check_physics, load_physics, model_fields, save_physics
from envs.snapshots.random_state import check_random, load_random, save_random, set_random
from envs.snapshots.replay import EpisodeLog, ReplayError, name_of
from envs.snapshots.warnings import take_over_warnings

__all__ = [
    "EpisodeLog", "FreshModel", "ReplayError", "check_physics", "check_random", "load", "load_physics", "load_random",
    "model_fields", "require_finite_array", "require_form", "require_number", "save", "save_physics", "save_random",
    "set_random", "take_over_warnings",
]  # fmt: skip


def save(env: gym.Env, row: int) -> dict[str, Any]:
    """The state of an environment that stands among others.

    :param env: with ``save_state`` and ``load_state``.
    :param row: its number, for the message.
    :raises UserError: where it lacks them, and where its state cannot be saved.
    """
    _require_methods(env, row)
    return env.save_state()


def load(env: gym.Env, row: int, state: Any) -> tuple[Any, str | None]:
    """Put an environment that stands among others into a state; where that cannot be reached, begin a new episode.

    :param env: with ``save_state`` and ``load_state``.
    :param row: its number, for the message.
    :param state: as :func:`save` gave it.
    :return: the present observation, and why a new episode was begun, None where the old one goes on.
    :raises UserError: where it lacks these methods, the state is not one of it, or what is then observed is not finite.
    """
    _require_methods(env, row)
    take_over_warnings()
    try:
        observation = env.load_state(state)
        if not _finite(observation):
            raise UserError(f"the state of {name_of(env)} leads to an observation that holds NaN or Inf")
        return observation, None
    except ReplayError as error:
        observation, _ = env.reset()
        return observation, str(error)
    except UserError as error:
        raise UserError(f"environment {row}: {error}") from None


def _finite(tree: Any) -> bool:
    """Whether no array of a tree of dicts holds NaN or infinity."""
    if isinstance(tree, dict):
        return all(map(_finite, tree.values()))
    return np.asarray(tree).dtype.kind != "f" or bool(np.isfinite(tree).all())


def _require_methods(env: gym.Env, row: int) -> None:
    for name in ("save_state", "load_state"):
        if not hasattr(env, name):
            raise UserError(f"environment {row} ({type(env).__name__}) has no state: it has no method '{name}'")
