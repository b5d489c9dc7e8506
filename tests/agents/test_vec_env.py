"""Vectorised environments: reward normalisation against SB3's own, seeds, and fresh observations."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents.finite import NonFiniteError
from agents.vec_env import NormalizeReward, make_vec_env
from tests.dotworld import DotEnv


def play(env, steps: int = 40) -> np.ndarray:
    env.seed(3)
    env.reset()
    generator = np.random.default_rng(0)
    return np.stack([env.step(generator.uniform(-1, 1, (2, 3)))[1] for _ in range(steps)])


def test_rewards_are_those_of_vecnormalize_and_observations_are_left_alone() -> None:
    ours = NormalizeReward(DummyVecEnv([DotEnv, DotEnv]), gamma=0.9)
    theirs = VecNormalize(DummyVecEnv([DotEnv, DotEnv]), norm_obs=False, gamma=0.9)
    assert np.allclose(play(ours), play(theirs), rtol=1e-6)
    assert ours.step(np.zeros((2, 3)))[0]["images"].dtype == np.uint8


def test_state_round_trip_goes_on_as_if_nothing_had_happened() -> None:
    first, second = (NormalizeReward(DummyVecEnv([DotEnv, DotEnv])) for _ in range(2))
    play(first)
    second.load_state(first.state())
    assert np.array_equal(play(first), play(second))


def test_seeds_repeat_and_differ_between_environments() -> None:
    def first_frames(seed: int) -> np.ndarray:
        return make_vec_env([DotEnv, DotEnv], seed=seed).reset()["images"]

    assert np.array_equal(first_frames(5), first_frames(5))
    assert not np.array_equal(first_frames(5), first_frames(6))
    frames = first_frames(5)
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[1], first_frames(6)[0])  # environment i starts with seed + i


def test_episode_records_carry_the_true_return_and_success() -> None:
    env = NormalizeReward(make_vec_env([DotEnv], seed=0))
    env.reset()
    rewards, infos = [], [{}]
    while "episode" not in infos[0]:
        _, reward, _, infos = env.step(np.zeros((1, 3)))
        rewards.append(float(reward[0]))
    dot = DotEnv()
    dot.reset(seed=0)
    truth = sum(dot.step(np.zeros(3))[1] for _ in range(DotEnv.horizon))
    assert np.isclose(infos[0]["episode"]["r"], truth, atol=1e-5)
    assert infos[0]["episode"]["is_success"] == infos[0]["is_success"]


def test_numbers_that_are_none_are_refused_with_the_environment() -> None:
    env = make_vec_env([DotEnv, DotEnv], seed=0)
    env.reset()
    with pytest.raises(NonFiniteError, match="the action of environment 1 is NaN or Inf"):
        env.step(np.array([[0, 0, 0], [0, np.inf, 0]]))
    dots = env.unwrapped.envs
    dots[0].poison = "reward"
    with pytest.raises(NonFiniteError, match="the reward of environment 0"):
        env.step(np.zeros((2, 3)))
    dots[0].poison, dots[1].poison = None, "observation"
    with pytest.raises(NonFiniteError, match="the observation 'proprio' of environment 1"):
        env.step(np.zeros((2, 3)))
    with pytest.raises(NonFiniteError, match="the observation 'proprio' of environment 1"):
        env.reset()
