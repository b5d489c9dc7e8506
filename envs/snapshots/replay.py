"""Episodes of environments that cannot tell their state: they are played again."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from envs.errors import UserError
from envs.snapshots.forms import (
    NUMERIC,
    PLAIN,
    described,
    plain_copy,
    require_finite_array,
    require_form,
    require_number,
)
from envs.snapshots.physics import FreshModel, load_physics, model_fields, save_physics
from envs.snapshots.random_state import check_random, load_random, save_random
from envs.snapshots.warnings import take_over_warnings

_CLOCKS = ("time", "stamp", "duration", "fps", "per_second")
_DEEPEST = 8


class ReplayError(UserError):
    """An episode that was played again did not lead to where it had been."""


class EpisodeLog:
    """Plays an environment that cannot tell its state, and remembers what it takes to play its episode again.

    That is what the environment was before its reset (random state, simulation, and the fields of its model that
    earlier episodes changed), seed and options of the reset, and all actions since. What else an environment keeps from
    one episode to the next is lost; where it shows, in what a step answers or where the last one leads, the episode is
    seen to be another one. As long as an episode has no step that could show it, the one before is played again, too.

    :param env: the environment, not reset yet; its ``unwrapped`` has ``model`` and ``data``, and may have
        ``model_changes`` as :class:`envs.tasks.arm.ArmEnv` has.
    :param horizon: most steps of an episode, None where there is no limit.
    """

    def __init__(self, env: gym.Env, horizon: int | None) -> None:
        take_over_warnings()
        self.env, self.horizon = env, horizon
        self._fresh = FreshModel(env.unwrapped.model, getattr(env.unwrapped, "model_changes", None))
        self._now: _Episode | None = None
        self._before: _Episode | None = None
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start an episode."""
        obstacle, kept = None, None
        try:
            kept = plain_copy(options, "what the reset was given as options")
        except UserError as error:
            obstacle = str(error)
        start = {"seed": seed if seed is None else int(seed), "options": kept} | self._present()
        self._observation, info = self.env.reset(seed=seed, options=options)
        if self._now is not None and self._now.steps > 0:
            self._before = self._now if self._now.obstacle is None else None
        self._now = _Episode(start, obstacle, info)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        """One step."""
        if self._now is not None:
            self._now.take(action)
        self._observation, *answer = self.env.step(action)
        if self._now is not None:
            self._now.hear(answer)
            self._before = None
        return self._observation, *answer

    def save_state(self) -> dict[str, Any]:
        """What it takes to play the episode again, and by what to know that it led to the same state.

        :raises UserError: where options or actions are no plain values.
        """
        if self._now is None:
            return {"episode": None}
        if self._now.obstacle is not None:
            raise UserError(f"{name_of(self.env)} cannot be saved: {self._now.obstacle}")
        before = None if self._before is None else self._before.saved()
        end = {"digest": self._digest(), "random_then": _random_of(self.env.unwrapped), "before": before}
        return {"episode": self._now.saved() | end}

    def load_state(self, state: Any) -> Any:
        """Play an episode again.

        :param state: as :meth:`save_state` gave it.
        :return: the last observation; None where the environment had not been reset.
        :raises ReplayError: where it leads elsewhere; the model is that of the new environment again, and the random
            state the one that was saved.
        :raises UserError: if it is no such state.
        """
        name = name_of(self.env)
        episode = require_form(state, {"episode": None}, f"the state of {name}")["episode"]
        if episode is not None:
            self._check(episode, f"the state of {name}")
        self._now = self._before = None
        if episode is None:
            return None
        played = [part for part in (episode["before"], episode) if part is not None]
        large = self._fresh.large(self.env.unwrapped.model, {name for part in played for name in part["model"]})
        for part in played:
            reason = self._replay(part)
            if reason is not None:
                self._forget(large, episode["random_then"])
                raise ReplayError(f"{name} is not where it was after {part['steps']} replayed actions: {reason}")
        return self._observation

    def _present(self) -> dict[str, Any]:
        """What an episode starts from, as far as it can be restored; the rest is seen when it is played again."""
        base = self.env.unwrapped
        physics, changed = save_physics(base.model, base.data), self._fresh.changed(base.model)
        if not np.isfinite(physics).all():
            physics = save_physics(base.model, mujoco.MjData(base.model))
        model = {name: value for name, value in changed.items() if self._fresh.objection(name, value) is None}
        return {"random": _random_of(base), "physics": physics, "model": model}

    def _forget(self, large: dict[str, np.ndarray], random: dict[str, Any] | None) -> None:
        """Undo what a file has done, but for the random state."""
        base = self.env.unwrapped
        self._now = self._before = None
        self._fresh.restore(base.model, large)
        mujoco.mj_resetData(base.model, base.data)
        if random is not None:
            load_random(base, random)

    def _replay(self, episode: dict[str, Any]) -> str | None:
        """What went wrong, None if nothing did."""
        base = self.env.unwrapped
        self._fresh.restore(base.model, episode["model"])
        load_physics(base.model, base.data, episode["physics"])
        if episode["random"] is not None:
            load_random(base, episode["random"])
        try:
            self.reset(seed=episode["seed"], options=plain_copy(episode["options"], "options"))
            for block in episode["actions"]:
                for action in block:
                    self.step(action.copy())
        except Exception as error:  # an environment that is not as it was may do anything
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        found = self._now.seen.hex(), self._digest()
        if found == (episode["seen"], episode.get("digest", found[1])):
            return None
        return "it depends on more than was saved, or this machine computes otherwise"

    def _check(self, episode: Any, what: str) -> None:
        form = dict.fromkeys(("seed", "options", "random", "physics", "model"))
        form |= {"actions": [np.ndarray], "steps": int, "seen": str}
        require_form(episode, form | {"digest": str, "random_then": None, "before": None}, what)
        if episode["random_then"] is not None:
            check_random(episode["random_then"], f"{what}: 'random_then'")
        self._check_played(episode, what)
        if episode["before"] is not None:
            self._check_played(require_form(episode["before"], form, f"{what}: 'before'"), f"{what}: 'before'")

    def _check_played(self, episode: dict[str, Any], what: str) -> None:
        base = self.env.unwrapped
        if episode["seed"] is not None:
            require_number(episode["seed"], int, f"{what}: 'seed'", 0)
        if episode["options"] is not None:
            plain_copy(require_form(episode["options"], dict, f"{what}: 'options'"), f"{what}: 'options'")
        if episode["random"] is not None:
            check_random(episode["random"], f"{what}: 'random'")
        require_finite_array(episode["physics"], save_physics(base.model, base.data), f"{what}: 'physics'")
        self._fresh.check(base.model, episode["model"], f"{what}: 'model'")
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


class _Episode:
    """What was done in an episode, and a digest of what came back.

    :param start: what it takes to begin it again.
    :param obstacle: why that cannot be saved.
    :param info: of its reset.
    """

    def __init__(self, start: dict[str, Any], obstacle: str | None, info: Any) -> None:
        self.start, self.obstacle = start, obstacle
        self.actions, self.steps, self.seen = _Actions(), 0, b""
        self._digest(info)

    def take(self, action: Any) -> None:
        """Keep an action, before the environment gets it and may write to it."""
        if not self.actions.append(action):
            self.obstacle = f"an action was {described(action)}, which is no array of numbers"

    def hear(self, answer: list[Any]) -> None:
        """Keep in mind what a step answered: reward, ends and info."""
        self.steps += 1
        self._digest(answer)

    def saved(self) -> dict[str, Any]:
        """All that is to be saved of it."""
        actions = self.actions.blocks()
        return self.start | {"actions": actions, "steps": sum(map(len, actions)), "seen": self.seen.hex()}

    def _digest(self, answer: Any) -> None:
        hasher = hashlib.sha256(self.seen)  # begun anew at each step: a hasher cannot be sent to another process
        _feed_numbers(hasher, answer)
        self.seen = hasher.digest()


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


def _feed_numbers(hasher: Any, value: Any, depth: int = 0) -> None:
    """Let a digest depend on all numbers in a tree and on where they stand, but for what clocks say.

    Infos hold anything: what is no number may be described by an address in memory, so it is left out.
    """
    if isinstance(value, float):
        hasher.update(float.hex(value).encode())
    elif isinstance(value, int):
        hasher.update(b"%x" % value)
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in NUMERIC:
        hasher.update(f"{value.dtype.str}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value))
    elif isinstance(value, dict) and depth < _DEEPEST:
        for key in sorted(key for key in value if isinstance(key, str)):
            if not _is_clock(key, value):
                hasher.update(f" {key}=".encode(errors="replace"))
                _feed_numbers(hasher, value[key], depth + 1)
    elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
        for part in value:
            hasher.update(b",")
            _feed_numbers(hasher, part, depth + 1)


def _is_clock(key: str, among: dict[str, Any]) -> bool:
    """Whether an entry of an info says how late it is or how long something took: another time it is another one."""
    return key.lower().endswith(_CLOCKS) or (key == "t" and {"r", "l"} <= among.keys())


def name_of(env: gym.Env) -> str:
    """What people call an environment: its id, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
