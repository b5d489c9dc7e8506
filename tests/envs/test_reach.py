"""The reach task: its physics, its reward, and what it tells."""

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.tasks.arm import ACTION_SCALE
from envs.tasks.reach import START_HALF_EXTENTS, SUCCESS_DISTANCE, TARGET_HALF_EXTENTS, ReachEnv


@pytest.fixture(scope="module")
def env():
    return ReachEnv()


def put_target(env, point):
    env.data.mocap_pos[env.model.body("target").mocapid[0]] = point


def test_gymnasium_accepts_it(env):
    check_env(env, skip_render_check=True)


def test_scripted_policy_solves_it_within_30_steps(env):
    successes = 0
    for seed in range(100):
        env.reset(seed=seed)
        for _ in range(30):
            info = env.step(env.scripted_action())[4]
        successes += info["is_success"]
    assert successes >= 99


def test_scripted_policy_moves_straight_at_full_speed(env):
    env.reset(seed=0)
    start = env.end_effector.copy()
    target = start + np.array([0.1, -0.2, 0.05])
    put_target(env, target)
    action = env.scripted_action()
    assert action.dtype == np.float32 and env.action_space.contains(action)
    np.testing.assert_allclose(action, [0.5, -1.0, 0.25, -1.0], atol=1e-6)
    put_target(env, start + [0.02, 0, 0])
    np.testing.assert_allclose(env.scripted_action(), [0.5, 0, 0, -1.0], atol=1e-6)  # and does not overshoot
    assert env.towards(start, closing=0.5)[3] == 0.5


def test_reaches_every_corner_of_the_box_to_a_centimetre(env):
    for corner in env.workspace.corners():
        env.reset(seed=0)
        for _ in range(40):
            env.step(env.towards(corner))
        assert np.linalg.norm(env.end_effector - corner) < 0.01
        axes = env.data.xmat[env.model.body("end_effector").id].reshape(3, 3)
        assert axes[2, 2] < -0.999  # the gripper still points straight down


def test_never_leaves_the_box(env):
    low, high = env.workspace.corners().min(0), env.workspace.corners().max(0)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(300):
        env.step(np.sign(rng.normal(size=4)))
        assert np.all(env.end_effector > low - 0.01) and np.all(env.end_effector < high + 0.01)


def test_targets_fill_the_box_and_starts_the_middle(env):
    centre = np.array(env.workspace.centre)
    targets, starts = [], []
    for seed in range(300):
        env.reset(seed=seed)
        targets.append(env.target - centre)
        starts.append(env.end_effector - centre)
        np.testing.assert_allclose(env.data.mocap_pos[env._hand], env.end_effector, atol=2e-3)  # it has settled
    for points, half_extents in ((targets, TARGET_HALF_EXTENTS), (starts, START_HALF_EXTENTS)):
        spread = np.abs(points).max(0) / half_extents
        assert np.all(spread < 1.02) and np.all(spread > 0.95)
        np.testing.assert_allclose(np.std(points, 0) / half_extents, 1 / np.sqrt(3), rtol=0.12)  # uniform
    assert np.all(np.array(TARGET_HALF_EXTENTS) * 2 >= (0.4, 0.4, 0.3))


def test_arm_is_at_rest_after_reset(env):
    env.reset(seed=3)
    start = env.end_effector.copy()
    for _ in range(5):
        env.step(np.array([0, 0, 0, -1.0]))
    assert np.linalg.norm(env.end_effector - start) < 1e-3


def test_an_action_moves_4_cm_along_each_axis(env):
    for axis in range(3):
        env.reset(seed=0)
        for _ in range(2):
            env.step(np.zeros(4))
        before = env.end_effector.copy()
        env.step(np.eye(4)[axis])
        for _ in range(4):
            env.step(np.zeros(4))
        np.testing.assert_allclose(env.end_effector - before, ACTION_SCALE * np.eye(3)[axis], atol=2e-3)


def test_gripper_opens_and_shuts(env):
    env.reset(seed=0)
    openings = []
    for command in (-1.0, 1.0, 0.0):
        for _ in range(10):
            env.step(np.array([0, 0, 0, command]))
        openings.append(env.proprio()[6])
    np.testing.assert_allclose(openings, [1, -1, 0], atol=0.05)


def test_proprio_is_position_velocity_and_opening(env):
    env.reset(seed=0)
    env.step(np.array([1.0, -0.5, 0.25, -1]))
    env.step(np.array([1.0, -0.5, 0.25, -1]))
    before = env.end_effector.copy()
    env.step(np.array([1.0, -0.5, 0.25, -1]))
    proprio = env.proprio()
    assert proprio.dtype == np.float32 and proprio.shape == (7,)
    expected = (env.end_effector - env.workspace.centre) / env.workspace.half_extents
    np.testing.assert_allclose(proprio[:3], expected, atol=1e-6)
    np.testing.assert_allclose(proprio[3:6], (env.end_effector - before) / ACTION_SCALE, atol=0.05)


def test_target_is_in_the_state_but_not_in_proprio(env):
    state, _ = env.reset(seed=0)
    proprio = env.proprio()
    put_target(env, env.target + [0.05, -0.05, 0.02])
    assert np.array_equal(env.proprio(), proprio)
    np.testing.assert_allclose(env.task_state()[:3] - state[7:10], [0.05 / 0.22, -0.05 / 0.22, 0.02 / 0.17], atol=1e-6)
    np.testing.assert_allclose(env.task_state()[3:], env.task_state()[:3] - proprio[:3], atol=1e-6)


def test_success_is_within_5_cm(env):
    assert SUCCESS_DISTANCE == 0.05
    env.reset(seed=0)
    for distance, solved in ((0.0499, True), (0.0501, False)):
        put_target(env, env.end_effector + [0, distance, 0])
        assert env.success() is solved
        assert env._info()["is_success"] is solved


def test_reward_is_bounded_falls_with_distance_and_is_known_at_two_points(env):
    env.reset(seed=0)
    rewards = []
    for distance in np.linspace(0, 0.6, 50):
        put_target(env, env.end_effector + [distance, 0, 0])
        rewards.append(env.reward())
    assert rewards[0] == pytest.approx(1.0) and min(rewards) >= 0
    assert np.all(np.diff(rewards) < 0)
    put_target(env, env.end_effector + [0.05, 0, 0])
    assert env.reward() == pytest.approx(1 - 0.5 * (np.tanh(0.25) + np.tanh(1.0)))


def test_reward_and_success_belong_to_the_state_after_the_step(env):
    env.reset(seed=1)
    for _ in range(8):
        state, reward, _, _, info = env.step(env.scripted_action())
        distance = np.linalg.norm((state[7:10] - state[:3]) * env.workspace.half_extents)
        assert reward == pytest.approx(1 - 0.5 * (np.tanh(distance / 0.2) + np.tanh(distance / 0.05)), abs=1e-5)
        assert info["is_success"] == (distance < SUCCESS_DISTANCE)


def test_what_is_told_is_the_state_itself_not_the_last_substep(env):
    """MuJoCo leaves positions one substep behind the state; the task must not."""
    env.reset(seed=2)
    for _ in range(3):
        env.step(np.array([1.0, 1.0, -1.0, 1.0]))
    fresh = mujoco.MjData(env.model)
    fresh.qpos[:], fresh.qvel[:] = env.data.qpos, env.data.qvel
    mujoco.mj_forward(env.model, fresh)
    np.testing.assert_allclose(env.end_effector, fresh.body("end_effector").xpos, atol=1e-12)
    velocity = np.zeros(6)
    body = env.model.body("end_effector").id
    mujoco.mj_objectVelocity(env.model, fresh, mujoco.mjtObj.mjOBJ_XBODY, body, velocity, 0)
    np.testing.assert_allclose(env.proprio()[3:6], velocity[3:] * 0.05 / ACTION_SCALE, atol=1e-6)


def test_episodes_end_by_truncation_only(env):
    env.reset(seed=0)
    ends = [env.step(env.scripted_action())[2:4] for _ in range(env.horizon)]
    assert not any(terminated for terminated, _ in ends)
    assert [truncated for _, truncated in ends] == [False] * (env.horizon - 1) + [True]


def test_the_same_seed_and_actions_repeat_an_episode_exactly(env):
    def play():
        rng = np.random.default_rng(5)
        states = [env.reset(seed=11)[0]]
        states += [env.step(rng.uniform(-1, 1, 4))[0] for _ in range(20)]
        return np.array(states), env.data.qpos.copy()

    first, again = play(), play()
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0][0], env.reset(seed=12)[0])
    assert not np.array_equal(env.reset()[0], env.reset()[0])  # without a seed each episode differs


def test_actions_that_are_not_finite_are_refused(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.array([0, np.nan, 0, 0]))
