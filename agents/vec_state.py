"""The state of environments side by side, so that training goes on in another process as if nothing had happened."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from agents.batch_env import BatchVecEnv
from agents.vec_env import CheckFinite, NormalizeReward
from agents.worker_env import WorkerVecEnv
from envs import snapshots
from envs.errors import UserError
from envs.snapshots import require_finite_array, require_form, require_number

_FORM = {"environments": [{"state": None, "lost": None}], "monitor": None, "rewards": None}


def save_env_state(env: VecEnv) -> dict[str, Any]:
    """The state between two steps, as plain values and arrays (:mod:`envs.snapshots`). Write to none of them.

    :param env: what :func:`agents.vec_env.make_vec_env` or :func:`agents.vec_env.watched_over` made, with or without
        :class:`~agents.vec_env.NormalizeReward` around it.
    :raises UserError: where an environment's state cannot be saved.
    """
    rewards, monitor, inner = _layers(env)
    return {
        "environments": _save_states(inner),
        "monitor": None if monitor is None else _save_monitor(monitor),
        "rewards": None if rewards is None else rewards.state() | {"returns": rewards.returns.copy()},
    }


def load_env_state(env: VecEnv, state: Any) -> tuple[VecEnvObs, np.ndarray]:
    """Go on from a state that as many environments, made in the same way, were in; processes may be more or fewer.

    Where an environment's episode cannot be brought back, it begins a new one, and a warning on stderr says why.
    Seeds and options that wait for the next reset are forgotten: it goes on with the random state that was saved.

    :param env: as for :func:`save_env_state`.
    :param state: as that function gave it; its form is checked.
    :return: observations of all environments as ``env.reset()`` gives them, and (N,) which began a new episode.
    :raises UserError: if it is no state of such environments.
    """
    rewards, monitor, inner = _layers(env)
    require_form(state, _FORM, "the environments' state")
    entries = state["environments"]
    if len(entries) != env.num_envs:
        raise UserError(f"the environments' state is that of {len(entries)} environments, here are {env.num_envs}")
    _check_monitor(monitor, state["monitor"])
    _check_rewards(rewards, state["rewards"])
    observations, reasons = _load_states(inner, entries)
    inner._reset_seeds()
    inner._reset_options()
    for row, reason in enumerate(reasons):
        if reason is not None:
            print(f"warning: environment {row} begins a new episode: {reason}", file=sys.stderr)
    restarted = np.array([reason is not None for reason in reasons])
    if monitor is not None:
        monitor.episode_returns = np.where(restarted, np.float32(0), state["monitor"]["returns"])
        monitor.episode_lengths = np.where(restarted, np.int32(0), state["monitor"]["lengths"])
        monitor.episode_count = state["monitor"]["count"]
    if rewards is not None:
        rewards.load_state(state["rewards"])
        rewards.returns[restarted] = 0.0
    return observations, restarted


def _layers(env: VecEnv) -> tuple[NormalizeReward | None, VecMonitor | None, VecEnv]:
    """What normalises rewards, what records episodes, and the environments."""
    rewards, monitor = None, None
    while isinstance(env, VecEnvWrapper):
        if type(env) is NormalizeReward and rewards is None:
            rewards = env
        elif type(env) is VecMonitor and monitor is None:
            monitor = env
        elif type(env) is not CheckFinite:
            raise UserError(f"environments in a {type(env).__name__} have no state that could be saved")
        env = env.venv
    if not isinstance(env, (DummyVecEnv, WorkerVecEnv, BatchVecEnv)):
        raise UserError(f"environments in a {type(env).__name__} have no state that could be saved")
    return rewards, monitor, env


def _save_states(inner: VecEnv) -> list[dict[str, Any]]:
    if isinstance(inner, DummyVecEnv):
        return [{"state": snapshots.save(env, row), "lost": None} for row, env in enumerate(inner.envs)]
    return inner.save_states()


def _load_states(inner: VecEnv, entries: list[dict[str, Any]]) -> tuple[VecEnvObs, list[str | None]]:
    """Observations, and by row why a new episode was begun."""
    if isinstance(inner, WorkerVecEnv):
        return inner.load_states(entries)
    form = {key: np.empty(box.shape, box.dtype) for key, box in inner.observation_space.spaces.items()}
    for row, entry in enumerate(entries):
        if entry["lost"] is not None:
            require_form(entry["lost"], form, f"environment {row}: 'lost'")
    if isinstance(inner, BatchVecEnv):
        observations, reasons = inner.load_states(entries)
    else:
        reasons = []
        for row, entry in enumerate(entries):
            observation, reason = snapshots.load(inner.envs[row], row, entry["state"])
            inner._save_obs(row, observation)
            reasons.append(reason)
        observations = inner._obs_from_buf()
    for row, entry in enumerate(entries):
        if entry["lost"] is not None:  # only workers lose episodes; what was saved is the one begun in its place
            reasons[row] = reasons[row] or "its worker had died"
    return observations, reasons


def _save_monitor(monitor: VecMonitor) -> dict[str, Any]:
    return {
        "returns": monitor.episode_returns.copy(),
        "lengths": monitor.episode_lengths.copy(),
        "count": int(monitor.episode_count),
    }


def _check_monitor(monitor: VecMonitor | None, state: Any) -> None:
    what = "the environments' state: 'monitor'"
    _require_both(what, monitor, state)
    if monitor is None:
        return
    require_form(state, {"returns": None, "lengths": monitor.episode_lengths, "count": int}, what)
    require_finite_array(state["returns"], monitor.episode_returns, f"{what}: 'returns'")
    if (state["lengths"] < 0).any():
        raise UserError(f"{what}: 'lengths' holds negative numbers")
    require_number(state["count"], int, f"{what}: 'count'", 0, 2**63)


def _check_rewards(rewards: NormalizeReward | None, state: Any) -> None:
    what = "the environments' state: 'rewards'"
    _require_both(what, rewards, state)
    if rewards is None:
        return
    require_form(state, dict.fromkeys(("mean", "var", "count", "returns")), what)
    require_finite_array(state["returns"], rewards.returns, f"{what}: 'returns'")
    for key, least in (("mean", -sys.float_info.max), ("var", 0.0), ("count", 0.0)):
        require_number(state[key], float, f"{what}: '{key}'", least, sys.float_info.max)


def _require_both(what: str, layer: VecEnvWrapper | None, state: Any) -> None:
    if layer is None and state is not None:
        raise UserError(f"{what} is there, but nothing here takes it")
    if layer is not None and state is None:
        raise UserError(f"{what} is missing for {type(layer).__name__}")
