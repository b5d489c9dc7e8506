"""The multi-view wrapper around any MuJoCo environment."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest

from envs.cameras import CameraSpec, WorkspaceSpec, load_cameras
from envs.errors import UserError
from envs.multiview import MultiViewObservation
from envs.registry import make
from envs.tasks.arm import ASSETS
from envs.tasks.reach import ReachEnv

CAMERAS = ASSETS / "cameras"
TWO_JOINTS = """<worldbody><geom type="plane" size="1 1 1"/>
  <body name="a"><joint name="a" axis="0 1 0"/><geom name="a" size="0.1"/>
  <body name="b" pos="0.3 0 0"><joint name="b" axis="0 1 0"/><geom size="0.1"/></body></body>
  <body name="free" pos="0 0 1"><freejoint/><geom size="0.1"/></body></worldbody>"""
VIEW = CameraSpec("c", (1, 1, 1), look_at=(0, 0, 0))


@pytest.fixture(scope="module")
def ant():
    env = make("Ant-v5", cameras=CAMERAS / "ant.yaml", height=48, width=64)
    yield env
    env.close()


@pytest.fixture(scope="module")
def reacher():
    env = make("Reacher-v5", cameras=CAMERAS / "reacher.yaml", observe=("images", "proprio", "state"))
    yield env
    env.close()


def run(env, steps, seed=0):
    env.action_space.seed(seed)
    observations = [env.reset(seed=seed)]
    observations += [env.step(env.action_space.sample()) for _ in range(steps)]
    return observations


def test_fixed_cameras_on_reacher(reacher):
    steps = run(reacher, 5)
    observation, reward, terminated, truncated, info = steps[-1]
    assert observation["images"].shape == (3, 64, 64, 3) and set(observation) == {"images", "proprio", "state"}
    assert reacher.observation_space.contains(observation)
    data = reacher.unwrapped.data
    np.testing.assert_allclose(observation["proprio"], [*data.qpos[:2], *data.qvel[:2]], rtol=1e-6)
    assert observation["state"].shape == reacher.unwrapped.observation_space.shape
    assert info["is_success"] is False and not reacher.defines_success
    assert reacher.horizon == 50 and not reacher.rig.moving and reacher.background is not None


def test_the_target_that_slides_is_no_background(reacher):
    run(reacher, 1)
    model = reacher.unwrapped.model
    names = {model.geom(geom).name for geom in reacher._visual.movable_geoms}
    assert names == {"link0", "link1", "fingertip", "target"}


def test_tracking_cameras_on_ant(ant):
    steps = run(ant, 30)
    assert set(steps[-1][0]) == {"images", "proprio"}  # poses are constant in the torso's frame
    assert steps[-1][0]["proprio"].shape == (16,)  # eight actuated joints; not where the ant is
    assert ant.background is None and not ant.rig.moving and ant.horizon == 1000
    torso = ant.unwrapped.data.body("torso").xpos
    assert np.linalg.norm(torso[:2]) > 0.01
    np.testing.assert_allclose(ant.body_positions(["torso"]), np.zeros((1, 3)), atol=1e-12)
    cameras, _ = load_cameras(CAMERAS / "ant.yaml")
    np.testing.assert_allclose(ant.camera_poses()[:, :3, 3], [camera.position for camera in cameras], atol=1e-6)


def test_the_ant_stays_in_the_picture(ant):
    for _ in range(2):
        run(ant, 40, seed=1)
        segments = ant.segment_views()
        rows, columns = np.nonzero(segments[0] == ant.unwrapped.model.geom("torso_geom").id)
        assert abs(rows.mean() - 24) < 8 and abs(columns.mean() - 32) < 8


def test_moving_cameras_hand_out_their_poses():
    rider = CameraSpec("rider", (0.0, 0.0, 1.5), look_at=(1.0, 0.0, 0.0), body="torso")
    fixed = CameraSpec("fixed", (3.0, 0.0, 2.0), look_at=(0.0, 0.0, 0.5))
    env = MultiViewObservation(gym.make("Ant-v5"), [rider, fixed], height=32, width=32)
    steps = run(env, 20)
    first, last = steps[0][0]["camera_poses"], steps[-1][0]["camera_poses"]
    assert env.rig.moving and env.background is None and first.dtype == np.float32 and first.shape == (2, 4, 4)
    assert not np.allclose(first[0], last[0]) and np.array_equal(first[1], last[1])
    np.testing.assert_array_equal(last, env.camera_poses())
    np.testing.assert_allclose(env.rig.world_from_camera, last, atol=1e-6)
    assert env.observation_space.contains(steps[-1][0])
    env.close()


def test_a_workspace_that_follows_makes_fixed_cameras_move():
    fixed = CameraSpec("fixed", (3.0, 0.0, 2.0), look_at=(0.0, 0.0, 0.5))
    workspace = WorkspaceSpec((0, 0, 0), (1, 1, 1), body="torso")
    env = MultiViewObservation(gym.make("Ant-v5"), [fixed], height=32, width=32, workspace=workspace)
    pose = run(env, 20)[-1][0]["camera_poses"][0]
    torso = env.unwrapped.data.qpos[:3]  # its xpos is one substep old after a step
    np.testing.assert_allclose(pose[:3, 3], np.array([3.0, 0.0, 2.0]) - torso, atol=1e-5)
    assert env.background is not None  # it stands still in the world
    env.close()


@pytest.mark.parametrize(
    "reported, expected",
    [({"success": 1.0}, True), ({"success": 0.0}, False), ({"is_success": True, "success": 0}, True)],
)
def test_success_is_mapped(scene, reported, expected):
    class Reporting(gym.Wrapper):
        def step(self, action):
            *rest, info = self.env.step(action)
            return (*rest, {**info, **reported, "other": 3})

    env = MultiViewObservation(Reporting(scene(TWO_JOINTS)), [VIEW], observe=("state",))
    env.reset(seed=0)
    assert not env.defines_success
    info = env.step(np.zeros(1))[4]
    assert info["is_success"] is expected and info["other"] == 3 and env.defines_success


def test_an_end_and_a_success_may_come_while_an_action_is_repeated(scene):
    """Success at the second of five steps, the end at the eighth: in the second action."""

    class Reporting(gym.Wrapper):
        def reset(self, **options):
            self.count = 0
            return self.env.reset(**options)

        def step(self, action):
            self.count += 1
            observation, *_, info = self.env.step(action)
            return observation, 1.0, self.count == 8, False, {**info, "success": self.count == 2}

    env = MultiViewObservation(Reporting(scene(TWO_JOINTS)), [VIEW], observe=("state",), action_repeat=5)
    env.reset(seed=0)
    assert env.horizon is None
    first, second = env.step(np.zeros(1)), env.step(np.zeros(1))
    assert first[1:4] == (5.0, False, False) and second[1:4] == (3.0, True, False)
    assert not first[4]["is_success"] and first[4]["was_success"]
    assert not second[4]["is_success"] and not second[4]["was_success"]
    env.close()


def test_earlier_frames_are_those_of_earlier_actions():
    """The ant's two frames, each action for three steps: kept in a state, too."""
    first, other = (make("ant-multiview", height=16, width=16, action_repeat=3) for _ in range(2))
    before, (after, *_) = first.reset(seed=0)[0], first.step(np.ones(8))
    assert (before["images"] != after["images"]).any()
    np.testing.assert_array_equal(after["previous"][0], before["images"])
    other.reset(seed=1)
    found = other.load_state(first.save_state())
    np.testing.assert_array_equal(found["previous"], after["previous"])
    later, again = first.step(-np.ones(8))[0], other.step(-np.ones(8))[0]
    np.testing.assert_array_equal(later["previous"][0], after["images"])
    np.testing.assert_array_equal(again["previous"], later["previous"])
    first.close(), other.close()


def test_only_what_is_asked_for_is_observed_and_rendered():
    env = make("reach-multiview", observe=("state",), renderer="gl")
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"state"} and observation["state"].shape == (13,)
    assert env._renderer._lease is None  # nothing was rendered, so nothing was opened


def test_views_can_be_had_at_any_size():
    env = make("reach-multiview", height=20, width=30)
    observation, _ = env.reset(seed=0)
    assert observation["images"].shape == (3, 20, 30, 3) and env.rig.width == 30
    large = env.render_views(200, 300)
    assert large.shape == (3, 200, 300, 3)
    np.testing.assert_array_equal(env.render_views(), observation["images"])  # also after a larger one
    assert env.segment_views(50, 40).shape == (3, 50, 40)
    shrunk = large.reshape(3, 20, 10, 30, 10, 3).mean((2, 4))
    assert np.abs(shrunk - observation["images"]).mean() < 6  # the same picture
    env.close()


def test_proprio_falls_back_to_actuated_joints(scene):
    env = scene(TWO_JOINTS + '<actuator><motor joint="b"/><position joint="b"/></actuator>')
    wrapped = MultiViewObservation(env, [VIEW], observe=("proprio",))
    wrapped.reset(seed=0)
    env.data.qpos[1], env.data.qvel[1] = 0.3, 0.7
    np.testing.assert_allclose(wrapped._proprio(), [0.3, 0.7], rtol=1e-6)


def test_an_environment_without_actuated_joints_has_no_proprio(scene):
    with pytest.raises(UserError, match="no actuated joint"):
        MultiViewObservation(scene(TWO_JOINTS), [VIEW])
    MultiViewObservation(scene(TWO_JOINTS), [VIEW], observe=("images",))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(observe=("image",)), "unknown observation 'image': did you mean 'images'? valid: images, proprio, state"),
        (dict(observe=()), "observe is empty"),
        (dict(height=0), "image size is 0 x 64"),
        (dict(action_repeat=0), "action repeat is 0; each action is applied at least once"),
        (dict(renderer="opengl"), "unknown renderer 'opengl'"),
        (dict(movable=("targt",)), "did you mean 'target'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError) as caught:
        MultiViewObservation(ReachEnv(), ReachEnv.cameras, **arguments)
    assert message in str(caught.value)


def test_unknown_bodies_are_named():
    env = make("reach-multiview")
    with pytest.raises(UserError, match="unknown body 'endeffector': did you mean 'end_effector'"):
        env.body_positions(["endeffector"])


def test_an_environment_of_another_simulator_is_refused():
    with pytest.raises(UserError, match="CartPoleEnv is no MuJoCo environment"):
        MultiViewObservation(gym.make("CartPole-v1"), [VIEW])


@pytest.mark.parametrize("clone", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
def test_environments_travel_also_after_rendering(clone):
    env = make("reach-multiview")
    observation, _ = env.reset(seed=1)
    twin = clone(env)
    np.testing.assert_array_equal(twin.render_views(), observation["images"])
    np.testing.assert_array_equal(twin.reset(seed=2)[0]["images"], env.reset(seed=2)[0]["images"])
    twin.close()
    np.testing.assert_array_equal(env.reset(seed=1)[0]["images"], observation["images"])
    env.close()


def test_poses_and_positions_are_those_of_the_state_not_of_the_last_step():
    """Right after a state is set, without any mj_forward, as after a reset of environments that forget it."""
    env = make("reach-multiview")
    env.reset(seed=0)
    place = np.array([0.5, 0.1, 0.3])
    env.unwrapped.data.mocap_pos[env.unwrapped.model.body("target").mocapid[0]] = place
    np.testing.assert_allclose(env.body_positions(["target"])[0], place, atol=1e-12)


@pytest.mark.parametrize("redraw", [None, 0, 1])
def test_a_tasks_scripted_policy_solves_it_through_the_wrapper(redraw):
    env = make("reach-multiview", observe=("proprio",), redraw=redraw)
    solved = 0
    for seed in range(100 if redraw is None else 20):
        env.reset(seed=seed)
        for _ in range(env.horizon):
            info = env.step(env.scripted_action())[4]
        solved += info["is_success"]
    assert solved >= (95 if redraw is None else 19)
    wrapped = gym.wrappers.TimeLimit(env, 10)
    np.testing.assert_array_equal(wrapped.get_wrapper_attr("scripted_action")(), env.unwrapped.scripted_action())


def test_a_task_without_a_scripted_policy_says_so(reacher):
    with pytest.raises(UserError, match="ReacherEnv has no scripted policy"):
        reacher.scripted_action()


@pytest.mark.parametrize("env_id", ["reach-multiview", "Reacher-v5"])
def test_a_repeated_action_is_as_many_steps(env_id: str) -> None:
    """Four times each action, against the same by hand; 50 steps end in the middle of the 13th action."""
    cameras = CAMERAS / "reacher.yaml" if env_id == "Reacher-v5" else None
    ours, plain = (make(env_id, cameras=cameras, height=16, width=16, action_repeat=n) for n in (4, 1))
    assert (ours.horizon, plain.horizon) == (13, 50)
    (observation, _), _ = ours.reset(seed=1), plain.reset(seed=1)
    plain.action_space.seed(1)
    over, actions = False, 0
    while not over:
        action = plain.action_space.sample()
        observation, reward, terminated, over, info = ours.step(action)
        rewards = []
        for _ in range(4):
            expected, one, _, ended, last = plain.step(action)
            rewards.append(one)
            if ended:
                break
        actions += 1
        assert reward == sum(rewards) and over == ended and not terminated
        assert info["is_success"] == last["is_success"]
        for key, value in expected.items():
            np.testing.assert_array_equal(observation[key], value)
    assert actions == 13 and len(rewards) == 2
    ours.close(), plain.close()


@pytest.mark.parametrize("env_id", ["reach-multiview", "Reacher-v5"])
def test_an_environment_that_repeats_actions_goes_on_from_its_state(env_id: str) -> None:
    cameras = CAMERAS / "reacher.yaml" if env_id == "Reacher-v5" else None
    first, other = (make(env_id, cameras=cameras, height=16, width=16, action_repeat=4) for _ in range(2))
    run(first, 12)
    other.reset(seed=5)
    found = other.load_state(first.save_state())
    np.testing.assert_array_equal(found["images"], first.render_views())
    action = first.action_space.sample()
    after, again = first.step(action), other.step(action)
    np.testing.assert_array_equal(after[0]["proprio"], again[0]["proprio"])
    assert after[1:4] == again[1:4] and after[3], "the 13th action ends the episode"
    first.close(), other.close()
