"""Episodes of environments that cannot tell their state: they are played again."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import gymnasium as gym
import numpy as np

from envs.errors import UserError
from envs.snapshots.forms import NUMERIC, PLAIN, described, plain_copy, require_form, require_number
from envs.snapshots.physics import FreshModel, load_physics, may_be_set, model_fields, save_physics
from envs.snapshots.random_state import check_random, load_random, save_random


class ReplayError(UserError):
    """An episode that was played again did not lead to where it had been."""


class EpisodeLog:
    """Plays an environment that cannot tell its state, and remembers what it takes to play its episode again.

    That is what the environment was before its reset (random state, simulation, and the fields of its model that
    earlier episodes changed), seed and options of the reset, and all actions since. What else an environment keeps from
    one episode to the next is lost; where it shows, the state that is reached is seen to be another one.

    :param env: the environment, not reset yet; its ``unwrapped`` has ``model`` and ``data``.
    :param horizon: most steps of an episode, None where there is no limit.
    """

    def __init__(self, env: gym.Env, horizon: int | None) -> None:
        self.env, self.horizon = env, horizon
        self._fresh = FreshModel(env.unwrapped.model)
        self._start: dict[str, Any] | None = None
        self._obstacle: str | None = None
        self._actions = _Actions()
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode."""
        base, obstacle, kept = self.env.unwrapped, None, None
        try:
            kept = plain_copy(options, "what the reset was given as options")
        except UserError as error:
            obstacle = str(error)
        start = {
            "seed": seed if seed is None else int(seed),
            "options": kept,
            "random": _random_of(base),
            "physics": save_physics(base.model, base.data),
            "model": {name: v for name, v in self._fresh.changed(base.model).items() if may_be_set(name, v)},
        }
        self._observation, info = self.env.reset(seed=seed, options=options)
        self._start, self._obstacle = start, obstacle
        self._actions.clear()
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        """One step."""
        if not self._actions.append(action):
            self._obstacle = f"an action was {described(action)}, which is no array of numbers"
        self._observation, *rest = self.env.step(action)
        return self._observation, *rest

    def save_state(self) -> dict[str, Any]:
        """What it takes to play the episode again, and by what to know that it led to the same state.

        :raises UserError: where options or actions are no plain values.
        """
        if self._start is None:
            return {"episode": None}
        if self._obstacle is not None:
            raise UserError(f"{name_of(self.env)} cannot be saved: {self._obstacle}")
        end = {"digest": self._digest(), "random_then": _random_of(self.env.unwrapped)}
        actions = self._actions.blocks()
        return {"episode": self._start | end | {"actions": actions, "steps": sum(map(len, actions))}}

    def load_state(self, state: Any) -> Any:
        """Play an episode again.

        :param state: as :meth:`save_state` gave it.
        :return: the last observation; None where the environment had not been reset.
        :raises ReplayError: where it leads elsewhere; the random state is the one that was saved.
        :raises UserError: if it is no such state.
        """
        name = name_of(self.env)
        episode = require_form(state, {"episode": None}, f"the state of {name}")["episode"]
        if episode is None:
            self._start = None
            return None
        self._check(episode, f"the state of {name}")
        base = self.env.unwrapped
        self._fresh.restore(base.model, episode["model"])
        load_physics(base.model, base.data, episode["physics"])
        if episode["random"] is not None:
            load_random(base, episode["random"])
        reason = self._replay(episode)
        if reason is None:
            return self._observation
        if episode["random_then"] is not None:
            load_random(base, episode["random_then"])
        raise ReplayError(f"{name} is not where it was after {episode['steps']} replayed actions: {reason}")

    def _replay(self, episode: dict[str, Any]) -> str | None:
        """What went wrong, None if nothing did."""
        try:
            self.reset(seed=episode["seed"], options=plain_copy(episode["options"], "options"))
            for block in episode["actions"]:
                for action in block:
                    self.step(action.copy())
        except Exception as error:  # an environment that is not as it was may do anything
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if self._digest() == episode["digest"]:
            return None
        return "it depends on more than was saved, or this machine computes otherwise"

    def _check(self, episode: Any, what: str) -> None:
        form = dict.fromkeys(("seed", "options", "random", "physics", "model", "random_then"))
        require_form(episode, form | {"actions": [np.ndarray], "steps": int, "digest": str}, what)
        model = self.env.unwrapped.model
        if episode["seed"] is not None:
            require_number(episode["seed"], int, f"{what}: 'seed'", 0)
        if episode["options"] is not None:
            plain_copy(require_form(episode["options"], dict, f"{what}: 'options'"), f"{what}: 'options'")
        for key in ("random", "random_then"):
            if episode[key] is not None:
                check_random(episode[key], f"{what}: '{key}'")
        require_form(episode["physics"], save_physics(model, self.env.unwrapped.data), f"{what}: 'physics'")
        self._fresh.check(model, episode["model"], f"{what}: 'model'")
        size = None if self.env.action_space.shape is None else math.prod(self.env.action_space.shape)
        for block in episode["actions"]:
            if block.dtype.kind not in NUMERIC or block.ndim < 1 or size not in (None, math.prod(block.shape[1:])):
                raise UserError(f"{what}: 'actions' holds {described(block)}, which are no actions of it")
            if not np.isfinite(block).all():
                raise UserError(f"{what}: 'actions' holds NaN or Inf")
        played = sum(map(len, episode["actions"]))
        most = played if self.horizon is None else min(played, self.horizon)
        require_number(episode["steps"], int, f"{what}: 'steps'", played, most)

    def _digest(self) -> str:
        """Of all by which two environments would be told apart."""
        base, hasher = self.env.unwrapped, hashlib.sha256()
        _feed(hasher, dict(model_fields(base.model)))
        _feed(hasher, [save_physics(base.model, base.data), _random_of(base), self._observation])
        return hasher.hexdigest()


class _Actions:
    """Actions of an episode, in arrays that grow; a new one where type or shape changes."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._used: list[int] = []

    def append(self, action: Any) -> bool:
        """Whether it could be kept."""
        values = np.asarray(action)
        if values.dtype.kind not in NUMERIC:
            return False
        block = self._blocks[-1] if self._blocks else None
        if block is None or block.dtype != values.dtype or block.shape[1:] != values.shape:
            self._blocks.append(np.empty((64, *values.shape), values.dtype))
            self._used.append(0)
        elif self._used[-1] == len(block):
            self._blocks[-1] = np.concatenate([block, np.empty_like(block)])
        self._blocks[-1][self._used[-1]] = values
        self._used[-1] += 1
        return True

    def clear(self) -> None:
        self._blocks, self._used = self._blocks[-1:], [0] * len(self._blocks[-1:])

    def blocks(self) -> list[np.ndarray]:
        """Copies, without what is empty."""
        return [block[:used].copy() for block, used in zip(self._blocks, self._used, strict=True) if used]


def _random_of(env: gym.Env) -> dict[str, Any] | None:
    """The state of an environment's generator; None where it has one that NumPy does not know."""
    try:
        return save_random(env.np_random)
    except UserError:
        return None


def _feed(hasher: Any, value: Any) -> None:
    """Let a digest depend on a tree: on types, shapes and every bit."""
    if isinstance(value, dict):
        hasher.update(b"dict %d " % len(value))
        for key in sorted(value, key=str):
            _feed(hasher, str(key))
            _feed(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        hasher.update(b"list %d " % len(value))
        for part in value:
            _feed(hasher, part)
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in NUMERIC:
        hasher.update(f"array {value.dtype.str} {value.shape} ".encode())
        hasher.update(np.ascontiguousarray(value))
    else:
        text = repr(value) if type(value) in PLAIN else type(value).__name__
        hasher.update(f"{type(value).__name__} {len(text)} {text}".encode())


def name_of(env: gym.Env) -> str:
    """What people call an environment: its id, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
