"""Push and lift: contacts do what the tasks are about, scripts solve them, and who does nothing does not."""

import numpy as np
import pytest

from envs.tasks.lift import SUCCESS_HEIGHT, LiftEnv
from envs.tasks.push import LEAST_WAY, SUCCESS_DISTANCE, PushEnv

TASKS = [PushEnv, LiftEnv]


def play(env, seed, act):
    """Infos and rewards of an episode."""
    env.reset(seed=seed)
    return [env.step(act(env)) for _ in range(env.horizon)]


@pytest.mark.parametrize("task", TASKS)
def test_scripts_solve_them(task):
    env = task()
    episodes = [play(env, seed, lambda env: env.scripted_action()) for seed in range(20)]
    ends = [[step[4]["is_success"] for step in episode] for episode in episodes]
    assert all(any(end) for end in ends) and sum(end[-1] for end in ends) >= 18


@pytest.mark.parametrize("task", TASKS)
def test_neither_rest_nor_chance_solves_them(task):
    env, generator = task(), np.random.default_rng(0)
    for act in (lambda env: np.zeros(4, np.float32), lambda env: generator.uniform(-1, 1, 4).astype(np.float32)):
        solved = [any(step[4]["is_success"] for step in play(env, seed, act)) for seed in range(10)]
        assert sum(solved) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_rewards_rise_on_the_way(task):
    env = task()
    for seed in range(5):
        rewards = [step[1] for step in play(env, seed, lambda env: env.scripted_action())]
        assert all(0 <= reward <= 1 for reward in rewards)
        assert np.mean(rewards[-5:]) > rewards[0] + 0.2


@pytest.mark.parametrize("task", TASKS)
def test_starts_are_at_rest_on_the_table_and_differ(task):
    env, places = task(), []
    for seed in range(30):
        env.reset(seed=seed)
        places.append(env.cube[:2].copy())
        before = env.cube.copy()
        for _ in range(10):
            env.step(np.array([0, 0, 1, 0], np.float32))  # the gripper goes up and away
        np.testing.assert_allclose(env.cube, before, atol=2e-3)
        assert not env.success()
    assert np.all(np.ptp(places, axis=0) > 0.15)


def test_the_way_to_push_is_never_short_and_success_is_measured_along_the_table():
    env = PushEnv()
    for seed in range(50):
        env.reset(seed=seed)
        assert env.distance > LEAST_WAY - 5e-3
    env.data.joint("cube_free").qpos[:3] = [*env.target[:2] + [SUCCESS_DISTANCE - 0.002, 0], 0.2]
    env._refresh()
    assert env.success()
    env.data.joint("cube_free").qpos[0] += 0.004
    env._refresh()
    assert not env.success()


def test_a_cube_between_shut_fingers_is_lifted_and_one_between_open_fingers_is_not():
    env = LiftEnv()
    heights = []
    for closing in (1.0, -1.0):
        env.reset(seed=3)
        for _ in range(25):
            action = env.scripted_action()
            action[3] = min(action[3], closing)
            if env.end_effector[2] < 0.045 and closing < 0:
                action[2] = 1.0
            env.step(action)
        heights.append(env.height)
    assert heights[0] > SUCCESS_HEIGHT and heights[1] < 0.02


def test_the_arm_goes_through_the_table_and_the_cube_does_not():
    """Only what the tasks are about touches: a policy that lowers the gripper too far is not thrown about."""
    env = PushEnv()
    env.reset(seed=0)
    for _ in range(30):
        env.step(np.array([0, 0, -1, 0], np.float32))
    touching = {frozenset((env.model.geom(c.geom1).name, env.model.geom(c.geom2).name)) for c in env.data.contact}
    others = {name for pair in touching for name in pair} - {"cube"}
    assert all("cube" in pair for pair in touching)
    assert others <= {"table_top", "left_finger_pad", "right_finger_pad", "hand_palm"}
    assert env.cube[2] > 0.02


@pytest.mark.parametrize("task", TASKS)
def test_whatever_is_done_to_the_cube_it_stays_in_the_tray(task):
    """Random actions, each held for a while, shove it about; what is out of reach could never be pushed or lifted."""
    env, generator, away = task(), np.random.default_rng(0), []
    for seed in range(40):
        env.reset(seed=seed)
        for step in range(env.horizon):
            if step % 8 == 0:
                action = generator.uniform(-1, 1, 4).astype(np.float32)
            env.step(action)
        away.append(np.abs(env.cube - [0.55, 0.0, 0.03])[:2].max())
        assert env.cube[2] > 0
    assert np.mean(np.array(away) < 0.27) >= 0.95 and max(away) < 1.0
