"""What every registered task must be; a new task is tested by being registered."""

import warnings

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_by_gymnasium
from stable_baselines3.common.env_checker import check_env as check_by_sb3

from envs.registry import make
from tests.tasks import ARM, FIXED, METAWORLD, OWN, TESTED

pytestmark = pytest.mark.filterwarnings("ignore")  # both checkers warn about unbounded boxes and 4-D images


REWARDS = {env_id: (0, 1) if env_id in ARM else (0, 10) if env_id in METAWORLD else (-20, 20) for env_id in TESTED}


OUTSIDE = dict.fromkeys(
    (
        f"metaworld-{task}"
        for task in ("door-open", "hand-insert", "lever-pull", "peg-insert-side", "plate-slide-side", "stick-pull",
                     "stick-push", "sweep", "window-open")
    ),
    {"goal"},
) | {
    "metaworld-door-close": {"hand", "goal"},
    "metaworld-handle-press-side": {"handle_link"},
    "metaworld-handle-pull-side": {"handle_link"},
}  # fmt: skip
"""What the box of Meta-World's tasks leaves out in some configurations; docs/tasks.md tells it."""


@pytest.fixture(scope="module", params=TESTED)
def env_id(request):
    return request.param


@pytest.fixture(scope="module")
def env(env_id):
    env = make(env_id, observe=("images", "proprio", "state"))
    yield env
    env.close()


def play(env, seed, steps):
    env.action_space.seed(seed)
    observations = [env.reset(seed=seed)[0]]
    observations += [env.step(env.action_space.sample())[0] for _ in range(steps)]
    return observations


def test_gymnasium_and_sb3_accept_it(env_id):
    env = make(env_id, height=32, width=32)
    check_by_gymnasium(env, skip_render_check=True)
    check_by_sb3(env)
    env.close()


def test_gymnasium_makes_it_by_name(env_id):
    env = gym.make(env_id, height=32, width=32)
    assert env.spec.max_episode_steps == env.get_wrapper_attr("horizon")
    observation, _ = env.reset(seed=0)
    assert observation["images"].shape == (len(env.get_wrapper_attr("rig").names), 32, 32, 3)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))  # recorded runs rebuild it
    np.testing.assert_array_equal(again.reset(seed=0)[0]["images"], observation["images"])
    env.close()
    again.close()


def test_gymnasium_makes_it_repeat_actions(env_id):
    """Gymnasium's limit counts the task's own steps, so that the environment's end comes first."""
    env = gym.make(env_id, observe=("proprio",), action_repeat=7)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions, over = 0, False
    while not over and actions < 12:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        actions, over = actions + 1, terminated or truncated
    horizon = env.get_wrapper_attr("horizon")
    assert env.spec.max_episode_steps == env.unwrapped.horizon and horizon == -(-env.unwrapped.horizon // 7)
    assert terminated or (truncated == (actions == horizon))
    env.close()


def test_observations_are_in_their_space_and_finite(env):
    for observation in play(env, 0, 5):
        assert env.observation_space.contains(observation)
        assert all(np.isfinite(value).all() for value in observation.values())
    assert observation["images"].shape == (3, 64, 64, 3) and observation["images"].dtype == np.uint8


def test_every_step_tells_reward_and_success(env, env_id):
    _, info = env.reset(seed=0)
    assert type(info["is_success"]) is bool and env.defines_success
    for _ in range(5):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert type(reward) is float and REWARDS[env_id][0] <= reward <= REWARDS[env_id][1]
        assert type(info["is_success"]) is bool and not terminated and not truncated


def test_seeded_episodes_repeat(env):
    for one, two in zip(play(env, 3, 4), play(env, 3, 4), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    assert not np.array_equal(play(env, 4, 0)[0]["images"], one["images"])


def test_lasts_its_horizon(env_id):
    env = make(env_id, observe=("proprio",))  # nothing is rendered
    env.reset(seed=0)
    assert 50 <= env.horizon <= (200 if env_id not in OWN or env_id in ARM else 1000)
    ends = [env.step(np.zeros(env.action_space.shape, np.float32))[3] for _ in range(env.horizon)]
    assert ends == [False] * (env.horizon - 1) + [True]


def test_views_show_one_instant_and_differ_by_camera(env, env_id):
    """Every observed image is the render of the state at that very step, by another environment put into it."""
    other = make(env_id)
    play(other, 5, 3)  # the same goal, and all else elsewhere
    observation, _ = env.reset(seed=5)
    for step in range(4):
        for name in ("qpos", "mocap_pos", "mocap_quat"):
            getattr(other.unwrapped.data, name)[:] = getattr(env.unwrapped.data, name)
        np.testing.assert_array_equal(other.render_views(), observation["images"])
        for one, two in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(observation["images"][one].astype(int) - observation["images"][two]).mean() > 2
        observation, *_ = env.step(
            np.resize(np.array([1, 1, -1, 1], np.float32), env.action_space.shape) * (-1) ** step
        )
    other.close()


def test_kept_observations_do_not_change(env):
    observations = play(env, 0, 0)
    copies = [{key: value.copy() for key, value in observations[0].items()}]
    for _ in range(3):
        observations.append(env.step(np.ones(env.action_space.shape, np.float32))[0])
        copies.append({key: value.copy() for key, value in observations[-1].items()})
    env.reset(seed=9)
    for kept, copy in zip(observations, copies, strict=True):
        for key in kept:
            np.testing.assert_array_equal(kept[key], copy[key])
    for key in copies[0]:
        assert not np.shares_memory(observations[0][key], observations[1][key])
    assert not np.array_equal(observations[0]["images"], observations[1]["images"])


def test_targets_are_in_the_images_and_not_in_proprio(env):
    base = env.unwrapped
    env.reset(seed=0)
    for name in (name for name in base.movable if base.model.body(name).mocapid[0] >= 0):
        before, proprio = env.render_views().astype(int), env._proprio()
        base.data.mocap_pos[base.model.body(name).mocapid[0]] += [0.0, 0.1, 0.03]
        after = env.render_views().astype(int)
        assert np.all((np.abs(after - before).max(-1) > 60).sum((1, 2)) >= 10)  # in each view at least ten pixels
        np.testing.assert_array_equal(env._proprio(), proprio)


def within(model: mujoco.MjModel, body: int) -> np.ndarray:
    """(N,) bool: which bodies are that one or hang on it, parents having the lower numbers."""
    hangs = np.arange(model.nbody) == body
    for number in range(body + 1, model.nbody):
        hangs[number] = hangs[model.body_parentid[number]]
    return hangs


def test_targets_and_robot_are_large_enough_to_be_seen(env):
    """Over random episodes, the probed things cover pixels at 64 px, in at least two views each, nearly always."""
    model = env.unwrapped.model
    seen = {name: [] for name in env.unwrapped.movable}
    for seed in range(20):
        env.reset(seed=seed)
        segments = env.segment_views()
        for name, views in seen.items():
            geoms = np.flatnonzero(within(model, model.body(name).id)[model.geom_bodyid])
            views.append((np.isin(segments, geoms).sum((1, 2)) >= 12).sum())
    for views in seen.values():
        assert np.mean(np.array(views) >= 2) >= 0.9 and min(views) >= 1


def test_background_has_no_robot_and_no_target(env, env_id):
    """It equals a render of the same scene with all movable geoms in a group that is not drawn."""
    env.reset(seed=0)
    if env_id not in FIXED and env_id in OWN:
        assert env.background is None, "a camera that moves sees another background at each instant"
        return
    image, background = env.render_views(), env.background
    assert np.abs(background.astype(int) - image).max() > 60
    env.reset(seed=1)
    np.testing.assert_array_equal(env.background, background)  # nothing of an episode is in it
    hidden = make(env_id)
    hidden.reset(seed=2)
    hidden._visual.model.geom_group[hidden._visual.movable_geoms] = 5
    hidden._visual.model.flex_group[:] = 5
    moving = hidden._visual.model
    names = {moving.geom(geom).name for geom in hidden._visual.movable_geoms}
    bodies = {moving.body(moving.geom_bodyid[geom]).name for geom in hidden._visual.movable_geoms}
    if env_id in ARM:
        assert {"left_finger_pad", "forearm_shell", "turret_column"} <= names
        shaped = {name for name in env.probe_bodies if env.unwrapped.model.body(name).geomnum[0]}
        assert shaped - {"end_effector"} <= bodies
        assert not names & {"floor", "table_top", "pedestal_column"}
    else:
        assert {"hand", "rightclaw", "goal"} <= bodies and not bodies & {"tablelink", "RetainingWall"}
    if hidden._renderer.name == "auto":
        hidden.render_views()
    if hidden._renderer.name == "gl":
        np.testing.assert_array_equal(hidden.render_views(), background)
    hidden.close()


def test_names_its_probe_bodies(env, env_id):
    env.reset(seed=0)
    positions = env.body_positions(env.probe_bodies)
    assert positions.shape == (len(env.probe_bodies), 3)
    places = zip(env.probe_bodies, np.abs(env.workspace.normalise(positions)).max(1), strict=True)
    assert {name for name, place in places if place >= 1.05} <= OUTSIDE.get(env_id, set())
    if env_id in ARM:
        np.testing.assert_allclose(positions[0], env.unwrapped.end_effector, atol=1e-9)
        for name, position in zip(env.probe_bodies[1:], positions[1:], strict=True):  # "cube", "target"
            if hasattr(env.unwrapped, name):  # points of a cloth have none of their own
                np.testing.assert_allclose(position, getattr(env.unwrapped, name), atol=1e-9)


def test_making_it_warns_of_nothing(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(env_id, renderer="auto").close()
