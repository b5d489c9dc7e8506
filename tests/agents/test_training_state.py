"""What decides how training goes on, taken and put back; and states that fit no run, each of which is one line."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.callbacks import AuxiliaryCallback, AuxiliaryConfig
from agents.offpolicy import KeypointSACPolicy
from agents.policies import KeypointPolicy
from agents.replay import FrameReplayBuffer
from agents.scene import Scene
from agents.training_state import (
    expect_replay,
    load_random_state,
    load_training_state,
    load_weights,
    optimizers,
    replay_streams,
    save_random_state,
    save_training_state,
)
from agents.vec_env import make_vec_env
from envs import registry
from envs.errors import UserError
from kp3d_rl.keypoint3d import Keypoint3DConfig
from kp3d_rl.storage.files import DamagedError

MAKE = functools.partial(registry.make, "reach-multiview", height=24, width=24)
ENCODER = Keypoint3DConfig(keypoints=4, width=4, decoder_width=8, precision="float32")


def make_model(algorithm: type[BaseAlgorithm]) -> BaseAlgorithm:
    """Two environments, a small network."""
    env = make_vec_env([MAKE, MAKE], seed=0)
    shared = {"scene": Scene.of(env), "encoder": ENCODER}
    if algorithm is PPO:
        options: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "max_grad_norm": math.inf}
        return PPO(KeypointPolicy, env, policy_kwargs=shared, seed=0, device="cpu", **options)
    options = {"buffer_size": 40, "replay_buffer_class": FrameReplayBuffer, "batch_size": 4, "learning_starts": 8}
    arguments = shared | {"net_arch": [8, 8], "policy_gradient_scale": 1.0}
    return SAC(KeypointSACPolicy, env, policy_kwargs=arguments, seed=0, device="cpu", train_freq=4, **options)


@pytest.fixture(scope="module", params=[PPO, SAC], ids=["ppo", "sac"])
def trained(request: pytest.FixtureRequest) -> Iterator[BaseAlgorithm]:
    model = make_model(request.param)
    yield model.learn(32)
    model.get_env().close()


@pytest.fixture(scope="module")
def ppo() -> Iterator[BaseAlgorithm]:
    model = make_model(PPO)
    yield model.learn(16)
    model.get_env().close()


@pytest.fixture(scope="module")
def sac() -> Iterator[BaseAlgorithm]:
    model = make_model(SAC)
    yield model.learn(16)
    model.get_env().close()


def everything(model: BaseAlgorithm) -> dict[str, Any]:
    """All that stands in a checkpoint, as copies."""
    state = {"training": save_training_state(model), "random": save_random_state(model)}
    weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
    moments = {name: copy.deepcopy(optimizer.state_dict()) for name, optimizer in optimizers(model).items()}
    streams = {stream.name: stream.read(stream.first, stream.count) for stream in replay_streams(model)}
    return copy.deepcopy(state) | {"weights": weights, "moments": moments, "streams": copy.deepcopy(streams)}


def put_back(model: BaseAlgorithm, found: dict[str, Any]) -> None:
    found = copy.deepcopy(found)
    load_weights(model, found["weights"], found["moments"])
    restarted, same = load_training_state(model, found["training"])
    assert same and not restarted.any()
    for stream in expect_replay(model, found["training"]):
        stream.write(stream.first, found["streams"][stream.name])
    load_random_state(model, found["random"])


def assert_same(first: Any, second: Any, name: str = "state") -> None:
    """Two trees, array by array and bit by bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_same(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), name
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{name}.{number}")
    elif isinstance(first, (np.ndarray, torch.Tensor)):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes(), name
    else:
        assert first == second, name


def test_another_model_goes_on_as_this_one_does(trained: BaseAlgorithm) -> None:
    before = everything(trained)
    other = make_model(type(trained))
    put_back(other, before)
    assert_same(everything(other), before)
    ends = []
    for model in (trained, other):
        load_random_state(model, before["random"])
        model.learn(16, reset_num_timesteps=False)
        ends.append(everything(model))
    assert_same(*ends)
    with pytest.raises(AssertionError):  # it did train
        assert_same(ends[0]["weights"], before["weights"])


def spoil(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put a value, or what a function makes of the old one, into a place of a tree; ``DELETE`` takes it out."""
    *above, last = path.split("/")
    for key in above:
        tree = tree[int(key) if isinstance(tree, list) else key]
    if value is DELETE:
        del tree[last]
    else:
        tree[last] = value(tree[last]) if callable(value) else value


DELETE = object()


def filled(number: float) -> Callable[[Any], Any]:
    """The same array or tensor with one number in every place."""
    return lambda old: torch.full_like(old, number) if isinstance(old, torch.Tensor) else np.full_like(old, number)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("counters/updates", -1, "'state.counters.updates' is a whole number where a count is expected"),
        ("counters/updates", 1.0, "'state.counters.updates' is a number where a count is expected"),
        ("counters/num_timesteps", 1 << 62, "'state.counters.num_timesteps' is a whole number where a count"),
        ("counters/episodes", DELETE, "'state.counters.episodes' is missing"),
        ("counters/extra", lambda _: 0, "'state.counters.extra' is not known"),
        ("counters", [], "'state.counters' is a list where a mapping is expected"),
        ("observation/proprio", filled(np.nan), "'state.observation.proprio' holds NaN or Inf"),
        ("observation/proprio", filled(np.inf), "'state.observation.proprio' holds NaN or Inf"),
        ("observation/proprio", filled(123), "'state.observation.proprio' is not what the environments' state gives"),
        ("observation/images", lambda old: old[:1], "'state.observation.images' is an array .* of uint8 where"),
        ("observation/images", lambda old: old.astype(np.int8), "is an array .* of int8 where an array .* of uint8"),
        ("episode_starts", lambda old: old.astype(np.uint8), "'state.episode_starts' is an array .* of uint8"),
        ("recent/lengths", np.zeros(7, np.int64), "'state.recent' has more episodes of one kind than of the other"),
        ("recent/returns", np.zeros((2, 2)), "'state.recent.returns' is no row of numbers"),
        ("recent/returns", np.zeros(1, np.int64), "'state.recent.returns' is no row of numbers"),
        ("replay", {}, "'state.replay' is a mapping where nothing is expected"),
        ("entropy", np.zeros(1, np.float32), "'state.entropy' is an array .* where nothing is expected"),
    ],
)
def test_states_that_fit_no_run_of_ppo(ppo: BaseAlgorithm, path: str, value: Any, message: str) -> None:
    state = copy.deepcopy(save_training_state(ppo))
    if callable(value) and path.endswith("extra"):
        state["counters"]["extra"] = 0
    spoil(state, path, value)
    with pytest.raises(DamagedError, match=message):
        load_training_state(ppo, state)
    load_training_state(ppo, save_training_state(ppo))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("entropy", filled(np.inf), "'state.entropy' holds NaN or Inf"),
        ("entropy", None, "'state.entropy' is nothing where an array"),
        ("replay", None, "'state.replay' is nothing where a mapping is expected"),
        ("replay/added", 1 << 61, "a replay of 20 steps cannot have 2305843009213693952 of them"),
        ("replay/oldest", filled(1000), "a replay of 20 steps cannot have 8 of them, the oldest .1000 1000."),
        ("replay/oldest", filled(-1), "a replay of 20 steps cannot have 8 of them"),
        ("replay/frame_counts", filled(-5), "a replay of 20 steps cannot have 8 of them"),
        ("replay/frame_counts", filled(1000), "a replay of 20 steps cannot have 8 of them"),
    ],
)
def test_states_that_fit_no_run_of_sac(sac: BaseAlgorithm, path: str, value: Any, message: str) -> None:
    state = copy.deepcopy(save_training_state(sac))
    spoil(state, path, value)
    with pytest.raises(DamagedError, match=message):
        load_training_state(sac, state)
        expect_replay(sac, state)
    load_training_state(sac, save_training_state(sac))


@pytest.mark.parametrize(("ring", "row", "value"), [("first", 0, -1), ("second", 0, 1 << 40), ("first", 3, 21)])
def test_transitions_without_frames_are_refused(sac: BaseAlgorithm, ring: str, row: int, value: int) -> None:
    numbers = getattr(sac.replay_buffer, ring)
    sac.replay_buffer.require_whole()
    kept = numbers[row, 1]
    numbers[row, 1] = value
    with pytest.raises(ValueError, match="the replay of environment 1 has transitions without frames"):
        sac.replay_buffer.require_whole()
    numbers[row, 1] = kept


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("python/version", 2, "'random.python' is a state of version 2"),
        ("python/words", filled(-1), "'random' cannot be restored: a word of 32 bits is out of range"),
        ("python/words", np.zeros(3, np.int64), "'random.python.words' is an array"),
        ("python/words", lambda old: np.append(old[:-1], 99999), "'random' cannot be restored"),
        ("python/gauss", [0.0, 1.0], "'random.python.gauss' is no list of at most one number"),
        ("python/gauss", 0.5, "'random.python.gauss' is no list of at most one number"),
        ("numpy/position", 625, "'random.numpy' is no state of NumPy's generator"),
        ("numpy/has_gauss", 2, "'random.numpy' is no state of NumPy's generator"),
        ("numpy/key", filled(1 << 32), "'random' cannot be restored: a word of 32 bits is out of range"),
        ("torch", lambda old: old[:-1], "'random.torch' is an array"),
        ("torch", filled(255), "'random' cannot be restored"),
        ("torch", lambda old: np.append(old[:-1], old[-1:] ^ 1), "'random.torch' is no state of torch's generator"),
        ("actions", {}, "'random.actions'"),
        ("actions", 5, "'random.actions'"),
    ],
)
def test_random_states_that_are_none(ppo: BaseAlgorithm, path: str, value: Any, message: str) -> None:
    whole = copy.deepcopy(save_random_state(ppo))
    state = copy.deepcopy(whole)
    spoil(state, path, value)
    try:
        with pytest.raises((DamagedError, UserError), match=message) as error:
            load_random_state(ppo, state)
        assert "\n" not in str(error.value)
    finally:
        load_random_state(ppo, whole)


@pytest.mark.parametrize("draws", [0, 1, 5, 623, 624, 625])
def test_torch_is_kept_from_reading_beyond_its_words(ppo: BaseAlgorithm, draws: int) -> None:
    """Two numbers say where it is, and they have to agree: it believes whatever both say."""
    kept = copy.deepcopy(save_random_state(ppo))
    try:
        torch.manual_seed(0)
        torch.rand(draws)
        honest = save_random_state(ppo)
        load_random_state(ppo, copy.deepcopy(honest))
        for left, following in ((624, 624), (0, 625), (-1, 626), (1, 1 << 40), (2, 0), (624, 0), (700, 1)):
            state = copy.deepcopy(honest)
            state["torch"][8:12] = np.array([left], np.int32).view(np.uint8)
            state["torch"][16:24] = np.array([following], np.uint64).view(np.uint8)
            with pytest.raises(DamagedError, match="'random.torch' is no state of torch's generator"):
                load_random_state(ppo, state)
        state = copy.deepcopy(honest)
        state["torch"][24 + 8 * 100 + 5] = 1
        with pytest.raises(DamagedError, match="'random.torch' is no state of torch's generator"):
            load_random_state(ppo, state)
    finally:
        load_random_state(ppo, kept)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("record", {"views": []}, "record' is no mapping of lists of numbers"),
        ("record", {"views": [1]}, "record' is no mapping of lists of numbers"),
        ("record", {"\ud800": [1.0]}, "record' is no mapping of lists of numbers"),
        ("record", {"a" * 61: [1.0]}, "record' is no mapping of lists of numbers"),
        ("gradient_norms", {"a,b": 1.0}, "gradient_norms' is no mapping of numbers"),
        ("gradient_norms", {"policy": 1}, "gradient_norms' is no mapping of numbers"),
        ("fresh", -1, "fresh' is a whole number where a count is expected"),
    ],
)
def test_states_of_the_auxiliary_loss_that_are_none(path: str, value: Any, message: str) -> None:
    model, callback = make_model(PPO), AuxiliaryCallback(AuxiliaryConfig(warmup_frames=0, warmup_steps=0))
    model.learn(16, callback=callback)
    state = copy.deepcopy(callback.state())
    callback.load_state(copy.deepcopy(state))
    spoil(state, f"auxiliary/{path}", value)
    with pytest.raises(DamagedError, match=message):
        callback.load_state(state)


def test_pythons_spare_gaussian_number_comes_back(ppo: BaseAlgorithm) -> None:
    for spare in range(2):
        random.seed(3)
        np.random.seed(3)
        for _ in range(spare):
            random.gauss(0, 1), np.random.normal()
        state = copy.deepcopy(save_random_state(ppo))
        then = [random.gauss(0, 1), np.random.normal(), float(torch.rand(())), *ppo.action_space.sample()]
        load_random_state(ppo, state)
        assert [random.gauss(0, 1), np.random.normal(), float(torch.rand(())), *ppo.action_space.sample()] == then


FIRST = "policy/state/0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("other", lambda _: {}, "it has optimisers other, policy, the run has policy|it has optimisers policy, other"),
        ("policy/param_groups", {}, "optimiser 'policy' has other groups than the run's"),
        ("policy/param_groups", lambda old: old * 2, "optimiser 'policy' has other groups than the run's"),
        ("policy/param_groups/0/lr", np.nan, "optimiser 'policy', group 0: 'lr' is nan"),
        ("policy/param_groups/0/lr", 1, "optimiser 'policy', group 0: 'lr' is 1"),
        ("policy/param_groups/0/betas", [0.5, 0.5], r"'betas' is \[0.5, 0.5\], the run's is \(0.9, 0.999\)"),
        ("policy/param_groups/0/eps", DELETE, "'.*' is .*, the run's is"),
        ("policy/state/0/step", filled(-1.0), "optimiser 'policy' has a negative step of parameter 0"),
        ("policy/state/0/exp_avg_sq", filled(-1.0), "optimiser 'policy' has a negative exp_avg_sq of parameter 0"),
        ("policy/state/0/exp_avg", filled(np.nan), "tensor 'policy.0.exp_avg' holds NaN or Inf"),
        ("policy/state/0/exp_avg", lambda old: old.flatten()[:1], "tensor 'policy.0.exp_avg' is .1,. of torch.float32"),
        ("policy/state/0/exp_avg", lambda old: old.double(), "tensor 'policy.0.exp_avg' is .* of torch.float64"),
        ("policy/state/0/exp_avg", DELETE, "optimiser 'policy' has moments step, exp_avg_sq of parameter 0"),
    ],
)
def test_optimisers_that_are_another_runs(ppo: BaseAlgorithm, path: str, value: Any, message: str) -> None:
    moments = copy.deepcopy({name: optimizer.state_dict() for name, optimizer in optimizers(ppo).items()})
    moments["policy"]["state"] = {str(number): part for number, part in moments["policy"]["state"].items()}
    if path == "other":
        moments["other"] = None
    spoil(moments, path, value)
    moments["policy"]["state"] = {int(number): part for number, part in moments["policy"]["state"].items()}
    with pytest.raises(DamagedError, match=message):
        load_weights(ppo, ppo.policy.state_dict(), moments)


def test_moments_of_a_parameter_that_is_not_there(ppo: BaseAlgorithm) -> None:
    moments = copy.deepcopy({"policy": ppo.policy.optimizer.state_dict()})
    moments["policy"]["state"][10_000] = moments["policy"]["state"][0]
    with pytest.raises(DamagedError, match="has moments of parameter 10000, which the run has not"):
        load_weights(ppo, ppo.policy.state_dict(), moments)


def test_weights_that_are_another_runs(ppo: BaseAlgorithm) -> None:
    moments = copy.deepcopy({"policy": ppo.policy.optimizer.state_dict()})
    whole = {name: value.clone() for name, value in ppo.policy.state_dict().items()}
    name = "action_net.weight"
    shared = next(other for other in whole if other.startswith("pi_features_extractor.encoder.views"))
    box = "features_extractor.encoder.half_extents"
    for weights, message in (
        ({key: value for key, value in whole.items() if key != name}, f"tensor '{name}' is missing"),
        (whole | {"more": torch.zeros(2)}, "tensor 'more' belongs to nothing in the run"),
        (whole | {name: whole[name][:1]}, f"tensor '{name}' is "),
        (whole | {name: whole[name].half()}, f"tensor '{name}' is .* of torch.float16"),
        (whole | {name: whole[name] * torch.inf}, f"tensor '{name}' holds NaN or Inf"),
        (whole | {shared: whole[shared] + 1}, "differ, which are one in the run"),
        (whole | {box: whole[box] * 10}, f"tensor '{box}' contradicts the run's cameras"),
    ):
        with pytest.raises(DamagedError, match=message):
            load_weights(ppo, weights, moments)
    load_weights(ppo, whole, moments)
