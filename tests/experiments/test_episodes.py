"""Episodes as arrays: who acts, which instants are kept, and where the bodies are."""

from __future__ import annotations

import contextlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.vec_env import HELD_STEPS, held_decisions, make_vec_env
from envs import registry
from envs.errors import UserError
from experiments.judging.episodes import Actors, act_by, act_randomly, behaviour, collect, visible_bodies


@pytest.fixture(scope="module")
def reach():
    with contextlib.closing(registry.make("reach-multiview", height=16, width=16)) as env:
        yield env


def test_random_actions_are_held_and_belong_to_the_seed(reach) -> None:
    act = act_randomly(reach, 5)
    first = [act(step, {}) for step in range(2 * HELD_STEPS)]
    assert all((action == first[0]).all() for action in first[:HELD_STEPS])
    assert all((action == first[-1]).all() for action in first[HELD_STEPS:]) and (first[0] != first[-1]).any()
    again = act_randomly(reach, 5)
    assert (again(0, {}) == first[0]).all() and (act_randomly(reach, 6)(0, {}) != first[0]).any()


def test_where_actions_are_repeated_random_ones_are_held_for_fewer() -> None:
    """So that a random hand goes as far between two draws as it does without."""
    for repeat, hold in ((1, 8), (3, 2), (4, 2), (20, 1)):
        with contextlib.closing(registry.make("reach-multiview", observe=("proprio",), action_repeat=repeat)) as env:
            several = DummyVecEnv([lambda env=env: env])
            assert held_decisions(env) == held_decisions(several) == hold
            act, actors = act_randomly(env, 5), Actors("random", several, 4)
            drawn = [np.stack([act(step, {}), actors(step)[0]]) for step in range(2 * hold)]
            assert (drawn[hold - 1] == drawn[0]).all() and (drawn[hold] != drawn[0]).any(-1).all()
    assert held_decisions(gym.make("Pendulum-v1")) == HELD_STEPS


def test_mixed_takes_turns_and_a_missing_script_is_one_line(reach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(reach.unwrapped), "scripted_action", lambda self: np.full(4, 0.25), raising=False)
    for name, by_script in (("random", [False, False]), ("mixed", [False, True]), ("scripted", [True, True])):
        actions = [behaviour(name, reach, 3, number)(0, {}) for number in range(2)]
        assert [bool((action == 0.25).all()) for action in actions] == by_script
    monkeypatch.delattr(type(reach.unwrapped), "scripted_action")
    with pytest.raises(UserError, match="ReachEnv has no scripted policy"):
        collect(reach, [3], lambda seed, number: behaviour("scripted", reach, seed, number), 2, 2, ["target"])


def test_actors_act_for_environments_side_by_side() -> None:
    env = make_vec_env([lambda: registry.make("reach-multiview", height=16, width=16)] * 3, seed=0)
    env.reset()
    act = Actors("random", env, 4)
    first = [act(step) for step in range(2 * HELD_STEPS)]
    assert first[0].shape == (3, 4) and (first[0] == first[HELD_STEPS - 1]).all() and (first[0] != first[-1]).any()
    assert (first[0][0] != first[0][1]).any() and (Actors("random", env, 4)(0) == first[0]).all()
    script = np.stack(env.env_method("scripted_action"))
    assert (Actors("scripted", env, 4)(0) == script).all()
    mixed = Actors("mixed", env, 4)(0)
    assert (mixed[0] == script[0]).all() and (mixed[1:] == first[0][1:]).all()
    env.close()


def test_instants_are_spread_over_each_episode(reach) -> None:
    names, told = ["target", "end_effector"], []

    def shown(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    act = act_by(lambda observation: np.full((1, 4), 0.5))
    every = collect(reach, [7], lambda seed, number: act, 6, 7, names)
    unseen = collect(reach, [7], lambda seed, number: act, 6, 7, names, blind=True)
    for name in ("images", "bodies"):
        np.testing.assert_array_equal(getattr(unseen, name), getattr(every, name))
    some = collect(reach, [7, 8], lambda seed, number: act, 6, 3, names, lambda *done: told.append(done))
    assert every.images.shape == (1, 7, 3, 16, 16, 3) and some.bodies.shape == (2, 3, 2, 4, 4)
    assert (shown(some.images[0]) == shown(every.images[0, [0, 3, 6]])).all() and told == [(1, 2), (2, 2)]
    np.testing.assert_allclose(some.positions(["end_effector"])[0, :, 0], every.bodies[0, [0, 3, 6], 1, :3, 3])
    longer = collect(reach, [7], lambda seed, number: act, 80, 2, names)  # the episode ends after 50 steps
    reach.reset(seed=7)
    for _ in range(50):
        reach.step(np.full(4, 0.5))
    np.testing.assert_allclose(longer.positions(["end_effector"])[0, 1], reach.body_positions(["end_effector"]))
    repeated = collect(reach, [7], lambda seed, number: act, 1, 4, names)  # fewer instants than are wanted
    assert (shown(repeated.images[0])[[0, 3]] == shown(every.images[0])[[0, 1]]).all()


def test_only_what_shows_can_be_sat_on(reach) -> None:
    assert "hand_target" not in visible_bodies(reach) and "target" in visible_bodies(reach)
    assert "end_effector" not in visible_bodies(reach) and "end_effector" in visible_bodies(reach, ["end_effector"])


def test_cameras_that_move_are_kept() -> None:
    with contextlib.closing(
        registry.make("Reacher-v5", cameras=Path(__file__).with_name("wrist.yaml"), height=16, width=16)
    ) as env:
        episodes = collect(env, [1, 2], lambda seed, number: behaviour("random", env, seed, number), 5, 3, ["target"])
    assert episodes.camera_poses.shape == (2, 3, 2, 4, 4)
    assert np.ptp(episodes.camera_poses[0, :, 0, :3, 3], axis=0).max() > 1e-4


def test_who_acts_blindly_has_only_what_is_kept_rendered(reach, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered, render = [], reach.render_views
    monkeypatch.setattr(reach, "render_views", lambda *size: rendered.append(1) or render(*size), raising=False)
    counts = []
    for blind in (False, True):
        rendered.clear()
        collect(reach, [5], lambda seed, _: behaviour("random", reach, seed, 0), 9, 3, ["target"], blind=blind)
        counts.append(len(rendered))
    assert counts == [10, 3] and "images" in reach.reset(seed=0)[0]
