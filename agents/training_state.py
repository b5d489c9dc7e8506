"""Everything of an algorithm of Stable-Baselines3 that decides how training goes on, as plain values and arrays.

Taken and put back between two rollouts: SB3 keeps its position inside ``collect_rollouts`` and ``learn`` to itself, but
where a rollout begins there is none. Weights and optimisers are kept apart (:func:`optimizers`), and so are the frames
of the replay, of which only the newest have to be written down (:func:`replay_streams`).
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.buffers import Stream
from agents.vec_state import load_env_state, save_env_state
from envs.snapshots import save_random, set_random
from envs.workers import Workers
from kp3d_rl.keypoint3d import SCENE_BUFFERS
from kp3d_rl.storage.files import DamagedError
from kp3d_rl.storage.trees import Tree, anything, require_like, require_size

_OWN_COUNTERS = ("auxiliary_calls", "worker_deaths")
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def optimizers(model: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    """All optimisers of an algorithm, by name: one for PPO's policy; actor's, critic's and entropy's for SAC and TQC.

    :param model: as built.
    """
    policy = model.policy
    found = {
        "policy": getattr(policy, "optimizer", None),
        "actor": getattr(getattr(policy, "actor", None), "optimizer", None),
        "critic": getattr(getattr(policy, "critic", None), "optimizer", None),
        "entropy": getattr(model, "ent_coef_optimizer", None),
    }
    return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


# -- the algorithm -----------------------------------------------------------------------------------------------------


def save_training_state(model: BaseAlgorithm) -> dict[str, Tree]:
    """State of algorithm, replay and environments.

    :param model: between two rollouts.
    """
    recent = list(model.ep_info_buffer or ())
    state: dict[str, Tree] = {
        "counters": {
            "num_timesteps": int(model.num_timesteps),
            "updates": int(model._n_updates),
            "episodes": int(model._episode_num),
            "auxiliary_calls": _auxiliary_calls(model),
            "worker_deaths": 0 if (pool := _pool(model)) is None else pool.deaths,
        },
        "observation": {key: _array(values) for key, values in model._last_obs.items()},
        "episode_starts": np.array(model._last_episode_starts, dtype=bool),
        "recent": {
            "returns": np.array([episode["r"] for episode in recent] or np.zeros(0, np.float32)),
            "lengths": np.array([episode["l"] for episode in recent], dtype=np.int64),
            "successes": np.array(list(model.ep_success_buffer or ()), dtype=bool),
        },
        "environments": save_env_state(model.get_env()),
        "replay": model.replay_buffer.state() if isinstance(model, OffPolicyAlgorithm) else None,
        "entropy": _array(model.log_ent_coef) if getattr(model, "log_ent_coef", None) is not None else None,
    }
    return state


def load_training_state(model: BaseAlgorithm, state: Mapping[str, Tree]) -> tuple[np.ndarray, bool]:
    """Undo :func:`save_training_state` on a model that was built alike, with environments of its own.

    :param model: before ``learn(..., reset_num_timesteps=False)``.
    :param state: what was saved.
    :return: which environments had to begin a new episode, (N,) bool; and whether all others show bit for bit what
        they showed.
    :raises DamagedError, UserError: for a state of another form or another kind of model.
    """
    state = dict(state)
    environments = state.pop("environments", None)
    require_like(state, _pattern(model), "state")
    numbers = {f"observation.{key}": values for key, values in state["observation"].items()}
    for name, values in (numbers | {"entropy": state["entropy"]}).items():
        if values is not None and not np.isfinite(values).all():  # training would have stopped before that
            raise DamagedError(f"'state.{name}' holds NaN or Inf")
    observation, restarted = load_env_state(model.get_env(), environments)
    saved, same = state["observation"], True
    for key, values in observation.items():
        shown = _array(values)
        before, now = saved[key][~restarted], shown[~restarted]
        same &= bool((now == before).all())
        if now.dtype != np.uint8 and not np.allclose(now, before, rtol=1e-3, atol=1e-3):  # views are another renderer's
            raise DamagedError(f"'state.observation.{key}' is not what the environments' state gives")
        saved[key][restarted] = shown[restarted]
    model._last_obs = {key: _like(saved[key], observation[key]) for key in observation}
    model._last_episode_starts = state["episode_starts"] | restarted
    counters = state["counters"]
    if hasattr(model.policy, "auxiliary"):
        model.policy.auxiliary.calls = counters["auxiliary_calls"]
    elif counters["auxiliary_calls"]:
        raise DamagedError("'state.counters.auxiliary_calls' counts calls of a loss that the run has not")
    if _pool(model) is not None:
        _pool(model).deaths = counters["worker_deaths"]
    model.num_timesteps, model._n_updates = counters["num_timesteps"], counters["updates"]
    model._episode_num = counters["episodes"]
    recent, size = state["recent"], model._stats_window_size
    if len(recent["returns"]) != len(recent["lengths"]):
        raise DamagedError("'state.recent' has more episodes of one kind than of the other")
    rows = zip(recent["returns"], recent["lengths"], strict=True)
    model.ep_info_buffer = deque(({"r": r, "l": int(steps), "t": 0.0} for r, steps in rows), maxlen=size)
    model.ep_success_buffer = deque(map(bool, recent["successes"]), maxlen=size)
    if state["entropy"] is not None:
        with torch.no_grad():
            model.log_ent_coef.copy_(torch.from_numpy(state["entropy"]))
    return restarted, same


def replay_streams(model: BaseAlgorithm) -> list[Stream]:
    """Transitions and frames of the replay, to be written down; none on-policy."""
    return model.replay_buffer.streams() if isinstance(model, OffPolicyAlgorithm) else []


def expect_replay(model: BaseAlgorithm, state: Mapping[str, Tree]) -> list[Stream]:
    """Have the replay stand where it stood; its items must be put into the streams that are returned.

    :param state: what :func:`save_training_state` gave.
    :raises DamagedError: where a replay of this size cannot stand there.
    """
    if not isinstance(model, OffPolicyAlgorithm):
        return []
    try:
        return model.replay_buffer.expect(state["replay"])
    except ValueError as error:
        raise DamagedError(str(error)) from None


def _pattern(model: BaseAlgorithm) -> dict[str, Any]:
    """What a state of this model looks like, without its environments'."""
    spaces, count = model.observation_space.spaces, model.n_envs
    off_policy = isinstance(model, OffPolicyAlgorithm)
    replay = {"added": require_size, "oldest": np.zeros(count, np.int64), "frame_counts": np.zeros(count, np.int64)}
    entropy = getattr(model, "log_ent_coef", None)
    return {
        "counters": dict.fromkeys(("num_timesteps", "updates", "episodes", *_OWN_COUNTERS), require_size),
        "observation": {key: np.zeros((count, *space.shape), space.dtype) for key, space in spaces.items()},
        "episode_starts": np.zeros(count, bool),
        "recent": {"returns": _floats, "lengths": np.zeros(0, np.int64), "successes": np.zeros(0, bool)},
        "replay": replay if off_policy else None,
        "entropy": None if entropy is None else _array(entropy),
    }


def _auxiliary_calls(model: BaseAlgorithm) -> int:
    """How many batches the auxiliary loss has seen, which its schedule goes by; 0 without one."""
    return model.policy.auxiliary.calls if hasattr(model.policy, "auxiliary") else 0


def _pool(model: BaseAlgorithm) -> Workers | None:
    """The worker processes of the environments, if there are any."""
    return getattr(model.get_env().unwrapped, "workers", None)


def _floats(tree: Tree, name: str) -> None:
    """SB3's monitors record returns in single or double precision."""
    if not isinstance(tree, np.ndarray) or tree.ndim != 1 or tree.dtype not in _FLOATS:
        raise DamagedError(f"'{name}' is no row of numbers")


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy().copy() if isinstance(values, torch.Tensor) else np.array(values)


def _like(values: np.ndarray, other: Any) -> Any:
    """An array as an array, or as a tensor where the other is one."""
    return torch.as_tensor(values, device=other.device) if isinstance(other, torch.Tensor) else values


# -- weights -----------------------------------------------------------------------------------------------------------


def load_weights(
    model: BaseAlgorithm, policy: Mapping[str, torch.Tensor], states: Mapping[str, dict[str, Any]]
) -> None:
    """Put weights and optimisers' moments into a model that was built alike.

    :param policy: state dict of the policy.
    :param states: state dicts of the optimisers, by name.
    :raises DamagedError: naming the first tensor or number that does not fit.
    """
    own = optimizers(model)
    if states.keys() != own.keys():
        raise DamagedError(f"it has optimisers {', '.join(states) or '(none)'}, the run has {', '.join(own)}")
    for name, optimizer in own.items():
        _require_fitting(states[name], optimizer, name)
    require_fitting_weights(policy, model.policy)
    model.policy.load_state_dict(policy)
    for name, optimizer in own.items():
        optimizer.load_state_dict(states[name])


def require_fitting_weights(weights: Mapping[str, torch.Tensor], module: torch.nn.Module) -> None:
    """Refuse weights that are not exactly a module's: names, shapes and types.

    :raises DamagedError: naming the first difference, with both values.
    """
    expected = module.state_dict()
    for name in expected:
        if name not in weights:
            raise DamagedError(f"tensor '{name}' is missing")
    for name, value in weights.items():
        if name not in expected:
            raise DamagedError(f"tensor '{name[:100]}' belongs to nothing in the run")
        _require_tensor(value, expected[name], name)
        if name.rpartition(".")[2] in SCENE_BUFFERS and not torch.allclose(value, expected[name].cpu(), atol=1e-5):
            raise DamagedError(f"tensor '{name}' contradicts the run's cameras")
    shared: dict[tuple[int, torch.Size], str] = {}
    for name, value in expected.items():  # a module that stands under several names has the same weights under all
        first = shared.setdefault((value.data_ptr(), value.shape), name)
        if value.numel() and not torch.equal(weights[name], weights[first]):
            raise DamagedError(f"tensors '{name}' and '{first}' differ, which are one in the run")


def _require_tensor(value: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise DamagedError(
            f"tensor '{name}' is {tuple(value.shape)} of {value.dtype}, "
            f"the run's is {tuple(expected.shape)} of {expected.dtype}"
        )
    if not torch.isfinite(value).all():  # training would have stopped before that
        raise DamagedError(f"tensor '{name}' holds NaN or Inf")


def _require_fitting(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, name: str) -> None:
    """Groups must be the optimiser's own but for the numbers in them, moments must fit their parameters."""
    own = optimizer.state_dict()["param_groups"]
    groups = state["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        raise DamagedError(f"optimiser '{name}' has other groups than the run's")
    for index, (found, expected) in enumerate(zip(groups, own, strict=True)):
        for key, value in expected.items():
            said = found.get(key) if isinstance(found, dict) else None
            if key == "lr":
                fits = type(said) is float and 0 <= said < math.inf
            else:  # as text: JSON knows no tuples, and to Python 1 is 1.0 and True
                fits = json.dumps(said) == json.dumps(value)
            if not fits or found.keys() != expected.keys():
                raise DamagedError(f"optimiser '{name}', group {index}: '{key}' is {said}, the run's is {value}")
            found[key] = tuple(said) if isinstance(value, tuple) else said
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in state["state"].items():
        if not 0 <= index < len(parameters):
            raise DamagedError(f"optimiser '{name}' has moments of parameter {index}, which the run has not")
        for entry in ("step", "exp_avg", "exp_avg_sq"):
            if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise DamagedError(f"optimiser '{name}' has moments {', '.join(moments)[:100]} of parameter {index}")
            expected = torch.zeros(()) if entry == "step" else parameters[index]
            _require_tensor(moments[entry], expected, f"{name}.{index}.{entry}")
            if entry != "exp_avg" and (moments[entry] < 0).any():
                raise DamagedError(f"optimiser '{name}' has a negative {entry} of parameter {index}")


# -- random numbers ----------------------------------------------------------------------------------------------------


def save_random_state(model: BaseAlgorithm) -> dict[str, Tree]:
    """State of Python's, NumPy's and torch's generators and of the one that draws random actions."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": np.array(words, dtype=np.int64), "gauss": _optional(gauss)},
        "numpy": {
            "key": numpy_state["state"]["key"].astype(np.int64),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state().numpy().copy(),
        "cuda": [torch.cuda.get_rng_state(model.device).numpy().copy()] if _uses_cuda(model) else [],
        "actions": save_random(model.action_space.np_random),
    }


def load_random_state(model: BaseAlgorithm, state: Mapping[str, Tree]) -> None:
    """Undo :func:`save_random_state`.

    :raises DamagedError: for a state of another form.
    """
    pattern = {
        "python": {"version": 3, "words": np.zeros(625, np.int64), "gauss": _zero_or_one_number},
        "numpy": {"key": np.zeros(624, np.int64), "position": require_size, "has_gauss": require_size, "gauss": 0.0},
        "torch": torch.get_rng_state().numpy(),
        "cuda": [np.zeros(0, np.uint8)],
        "actions": anything,
    }
    require_like(state, pattern, "random")
    python, numpy_state = state["python"], state["numpy"]
    if python["version"] != random.getstate()[0]:
        raise DamagedError(f"'random.python' is a state of version {python['version']}")
    if numpy_state["position"] > 624 or numpy_state["has_gauss"] > 1:  # NumPy would read beyond its array
        raise DamagedError("'random.numpy' is no state of NumPy's generator")
    try:
        words = (*map(int, _words(python["words"][:-1])), int(python["words"][-1]))  # the last is a position
        random.setstate((python["version"], words, _from_optional(python["gauss"])))
        key = {"key": _words(numpy_state["key"]), "pos": numpy_state["position"]}
        legacy = {"has_gauss": numpy_state["has_gauss"], "gauss": numpy_state["gauss"]}
        np.random.set_state({"bit_generator": "MT19937", "state": key} | legacy)
        _require_torch_state(state["torch"])
        torch.set_rng_state(torch.from_numpy(state["torch"]))
        if not np.array_equal(torch.get_rng_state().numpy(), state["torch"]):  # which looks at a part of it alone
            raise ValueError("'random.torch' is no state of torch's generator")
        if _uses_cuda(model) and state["cuda"]:  # of a run that began without one, the circumstances tell of it
            torch.cuda.set_rng_state(torch.from_numpy(state["cuda"][0]), model.device)
        set_random(model.action_space.np_random, state["actions"], "'random.actions'")
    except (ValueError, TypeError, RuntimeError, OverflowError, KeyError) as error:
        raise DamagedError(f"'random' cannot be restored: {' '.join(str(error).split())[:200]}") from None


def _require_torch_state(state: np.ndarray) -> None:
    """Refuse a state with which torch, which does not look, would read beyond its 624 words.

    As in torch's ``CPUGeneratorImpl.cpp``: the seed in 8 bytes, 4 of how many words are left, 4 of whether it was
    seeded, 8 of the next one's number, then the words in 8 each.

    :raises ValueError: for one that it would not get into.
    """
    left, seeded = state[8:16].view(np.int32)
    following, words = state[16:24].view(np.uint64)[0], state[24 : 24 + 8 * 624].view(np.uint64)
    begins = left == 1 and following == 0
    goes_on = 1 <= left <= 624 and following == 625 - left
    if seeded != 1 or not (begins or goes_on) or (words >= 1 << 32).any():
        raise ValueError("'random.torch' is no state of torch's generator")


def _words(values: np.ndarray) -> np.ndarray:
    if (values < 0).any() or (values >= 1 << 32).any():
        raise ValueError("a word of 32 bits is out of range")
    return values.astype(np.uint32)


def _uses_cuda(model: BaseAlgorithm) -> bool:
    return model.device.type == "cuda"


def _optional(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _from_optional(values: list[float]) -> float | None:
    return values[0] if values else None


def _zero_or_one_number(tree: Tree, name: str) -> None:
    if not isinstance(tree, list) or len(tree) > 1 or not all(type(value) is float for value in tree):
        raise DamagedError(f"'{name}' is no list of at most one number")
