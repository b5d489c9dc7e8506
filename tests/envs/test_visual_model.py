"""The visual model shows exactly what the physics model's state says, and never touches it."""

import warnings

import mujoco
import numpy as np
import pytest

from envs.cameras import CameraSpec, WorkspaceSpec
from envs.errors import UserError
from envs.registry import make
from envs.tasks.arm import ASSETS
from envs.visual_model import MarkerSpec, VisualModel, body_names
from tests.tasks import ALL, OWN, TESTED

CAMERA = CameraSpec("c", (1.5, 0.5, 1.0), look_at=(0, 0, 0.2))
# A free lopsided mesh (MuJoCo moves and turns its frame when compiling), a mocap ball, a hinge, sites and a tendon.
SCENE = """
<asset>
  <mesh name="wedge" vertex="0 0 0  0.3 0 0  0 0.1 0  0 0 0.2  0.3 0.1 0.05"/>
  <material name="paint" rgba="0.2 0.7 0.3 1"/>
</asset>
<worldbody>
  <light name="lamp" pos="0 0 3" dir="0 0 -1"/>
  <geom name="floor" type="plane" size="2 2 1"/>
  <geom name="post" type="box" size="0.02 0.02 0.1" pos="0.3 0.3 0.1" rgba="0.1 0.1 0.1 1"/>
  <body name="free" pos="0 0 0.4"><freejoint/><geom name="wedge" type="mesh" mesh="wedge" material="paint"/></body>
  <body name="ball" mocap="true" pos="0.3 0 0.2"><geom name="ball" size="0.05" rgba="0.9 0.1 0.1 1"/></body>
  <body name="arm" pos="-0.3 0 0.2"><joint name="hinge" axis="0 1 0"/>
    <geom name="bar" type="capsule" fromto="0 0 0 0.2 0 0" size="0.02" rgba="0.1 0.1 0.9 1"/>
    <site name="tip" pos="0.2 0 0"/></body>
  <body name="marker" pos="-0.2 0.3 0.1"><geom name="marker" size="0.05" rgba="0.9 0.8 0.1 1"/></body>
  <site name="anchor" pos="-0.3 -0.3 0.3"/>
</worldbody>
<tendon><spatial name="rope" width="0.01" rgba="0 0 0 1"><site site="tip"/><site site="anchor"/></spatial></tendon>
<actuator><motor name="motor" joint="hinge"/></actuator>
<sensor><jointpos joint="hinge"/></sensor>
<keyframe><key name="start" ctrl="0.5"/></keyframe>
"""


def vertex_clouds(model, data):
    """Points that each geom is made of, world metres: a mesh's vertices, else its frame's axes scaled by its size."""
    clouds = []
    for geom in range(model.ngeom):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            points = model.mesh_vert[start : start + count]
        else:
            points = np.concatenate([np.eye(3), -np.eye(3)]) * np.maximum(model.geom_size[geom], 0.01)
        clouds.append(points @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return clouds


def assert_same_places(visual, physics, data):
    mujoco.mj_kinematics(physics, data)
    seen, there = vertex_clouds(visual.model, visual.data), vertex_clouds(physics, data)
    assert len(seen) == len(there) + len(visual.markers)
    for mine, theirs in zip(seen, there, strict=False):
        distances = np.linalg.norm(mine[:, None] - theirs[None], axis=2)
        assert distances.min(axis=0).max() < 2e-3 and distances.min(axis=1).max() < 2e-3


def shake(model, data, rng):
    """An arbitrary state."""
    data.qpos[:] = rng.normal(size=model.nq)
    data.mocap_pos[:] = rng.normal(size=(model.nmocap, 3))
    data.mocap_quat[:] = rng.normal(size=(model.nmocap, 4))
    data.mocap_quat[:] /= np.linalg.norm(data.mocap_quat, axis=1, keepdims=True)


def test_geoms_stand_where_the_state_says(scene):
    env = scene(SCENE)
    visual = VisualModel(env.fullpath, env.model, [CAMERA])
    rng = np.random.default_rng(0)
    for _ in range(10):
        shake(env.model, env.data, rng)  # no mj_forward: the physics' own geom poses are stale now
        visual.sync(env.model, env.data)
        assert_same_places(visual, env.model, env.data)


@pytest.mark.parametrize("env_id", [*(TESTED if ALL else OWN), "Ant-v5", "Reacher-v5"])
def test_registered_tasks_look_as_they_are(env_id):
    """Of Meta-World's robot of 67,000 triangles, all are compared where all tasks are tested."""
    cameras = None if env_id in (*OWN, *TESTED) else ASSETS / "cameras" / f"{env_id[:-3].lower()}.yaml"
    env = make(env_id, cameras=cameras, quality="full")
    env.env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        env.env.step(env.action_space.sample())
        visual = env._synced()
        assert_same_places(visual, env.unwrapped.model, env.unwrapped.data)
        theirs = {env.unwrapped.model.body(index).name for index in range(env.unwrapped.model.nbody)}
        for name in theirs.intersection(env.body_names):
            np.testing.assert_allclose(visual.data.body(name).xpos, env.unwrapped.data.body(name).xpos, atol=1e-9)


CHANGES = {
    "body_pos": lambda m: m.body("marker").pos.__setitem__(slice(None), [0.1, -0.3, 0.2]),
    "geom_pos": lambda m: m.geom("post").pos.__setitem__(2, 0.3),
    "geom_size": lambda m: m.geom("marker").size.__setitem__(0, 0.15),
    "geom_rgba": lambda m: m.geom("marker").rgba.__setitem__(slice(0, 3), [0, 1, 1]),
    "mat_rgba": lambda m: m.mat("paint").rgba.__setitem__(slice(0, 3), [1, 0, 1]),
    "site_pos": lambda m: m.site("anchor").pos.__setitem__(2, 0.5),
    "light_diffuse": lambda m: m.light("lamp").diffuse.__setitem__(slice(None), 0.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_task_changes_in_its_model_shows(scene, change, require_renderer):
    require_renderer("gl")
    from envs.renderers.gl import GLRenderer

    env, renderer = scene(SCENE), GLRenderer()
    visual = VisualModel(env.fullpath, env.model, [CAMERA])
    visual.sync(env.model, env.data)
    before = renderer.render(visual, 96, 96).astype(int)
    CHANGES[change](env.model)
    visual.sync(env.model, env.data)
    after = renderer.render(visual, 96, 96).astype(int)
    assert np.abs(after - before).max() > 20
    assert_same_places(visual, env.model, env.data)
    renderer.close()


def test_looking_leaves_the_physics_alone(scene):
    env = scene(SCENE)
    mujoco.mj_resetDataKeyframe(env.model, env.data, 0)
    mujoco.mj_step(env.model, env.data, 5)
    model_before = np.empty(mujoco.mj_sizeModel(env.model), np.uint8)
    model_after = model_before.copy()
    mujoco.mj_saveModel(env.model, None, model_before)
    size = mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    state_before, state_after = np.empty(size), np.empty(size)
    mujoco.mj_getState(env.model, env.data, state_before, mujoco.mjtState.mjSTATE_INTEGRATION)
    places = env.data.geom_xpos.copy()
    visual = VisualModel(env.fullpath, env.model, [CAMERA], movable=["marker"])
    visual.sync(env.model, env.data)
    with visual.only_background():
        pass
    mujoco.mj_saveModel(env.model, None, model_after)
    mujoco.mj_getState(env.model, env.data, state_after, mujoco.mjtState.mjSTATE_INTEGRATION)
    np.testing.assert_array_equal(model_before, model_after)
    np.testing.assert_array_equal(state_before, state_after)
    np.testing.assert_array_equal(places, env.data.geom_xpos)


def test_rendered_and_unrendered_episodes_are_bit_equal():
    for env_id in TESTED:
        seen, unseen = make(env_id), make(env_id, observe=("proprio",))
        for env in (seen, unseen):
            env.reset(seed=4)
            env.action_space.seed(4)
        for _ in range(15):
            seen.step(seen.action_space.sample())
            unseen.step(unseen.action_space.sample())
            np.testing.assert_array_equal(seen.unwrapped.data.qpos, unseen.unwrapped.data.qpos)
            np.testing.assert_array_equal(seen.unwrapped.data.qvel, unseen.unwrapped.data.qvel)
        seen.close()


def test_what_a_file_is_warned_of_is_not_said_again(tmp_path):
    """HalfCheetah's sets its total mass, which MuJoCo no longer likes; that it says where the environment is made."""
    (tmp_path / "cameras.yaml").write_text("cameras: [{name: a, position: [0, -3, 1], look_at: [0, 0, 0]}]")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*settotalmass")
        make("HalfCheetah-v5", cameras=tmp_path / "cameras.yaml").close()


def test_bodies_without_a_name_are_called_after_their_parent(scene):
    env = scene(
        """<worldbody> <body name="box"> <geom size="0.1"/> <body> <geom size="0.1"/> </body>
        <body> <geom size="0.1"/> </body> </body> </worldbody>"""
    )
    visual = VisualModel(env.fullpath, env.model, [CAMERA])
    assert body_names(visual.model) == ["box", "box/1", "box/2"] and body_names(env.model) == ["box"]


def test_markers_stand_where_they_are_told_behind_all_that_the_task_has(scene):
    env = scene(SCENE)
    visual = VisualModel(env.fullpath, env.model, [CAMERA], markers=[MarkerSpec("goal", 0.03), MarkerSpec("other")])
    places = np.array([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]])
    visual.sync(env.model, env.data, places)
    np.testing.assert_allclose(visual.body_positions(["goal", "other"]), places)
    assert visual.model.ngeom == env.model.ngeom + 2 and visual.model.geom_size[-2, 0] == 0.03
    assert set(visual.movable_geoms) >= {visual.model.ngeom - 2, visual.model.ngeom - 1}
    with pytest.raises(UserError, match="marker 'marker' has the name of a body of the model"):
        VisualModel(env.fullpath, env.model, [CAMERA], markers=[MarkerSpec("marker")])


def test_the_background_is_what_cannot_move(scene):
    env = scene(SCENE)
    visual = VisualModel(env.fullpath, env.model, [CAMERA], movable=["marker"])
    names = {env.model.geom(geom).name for geom in visual.movable_geoms}
    assert names == {"wedge", "ball", "bar", "marker"}
    without = VisualModel(env.fullpath, env.model, [CAMERA])
    assert {env.model.geom(geom).name for geom in without.movable_geoms} == {"wedge", "ball", "bar"}


def test_the_background_holds_nothing_movable(scene, require_renderer):
    """It equals a render of a scene in which the movable things were never put, and leaves the model as it was."""
    require_renderer("gl")
    from envs.renderers.gl import GLRenderer

    still = """<statistic extent="2" center="0 0 0"/><worldbody><light name="lamp" pos="0 0 3" dir="0 0 -1"/>
      <geom name="floor" type="plane" size="2 2 1"/> <site name="anchor" pos="-0.3 -0.3 0.3"/>
      <geom name="post" type="box" size="0.02 0.02 0.1" pos="0.3 0.3 0.1" rgba="0.1 0.1 0.1 1"/></worldbody>"""
    full, empty, draw = scene('<statistic extent="2" center="0 0 0"/>' + SCENE), scene(still), GLRenderer()
    visual = VisualModel(full.fullpath, full.model, [CAMERA], movable=["marker"])
    colours = visual.model.geom_rgba.copy()
    before = draw.render(visual, 96, 96)
    with visual.only_background():
        background = draw.render(visual, 96, 96).astype(int)
    expected = draw.render(VisualModel(empty.fullpath, empty.model, [CAMERA]), 96, 96).astype(int)
    assert np.abs(background - expected).max() <= 1
    assert np.abs(background - before).max() > 50
    np.testing.assert_array_equal(colours, visual.model.geom_rgba)
    np.testing.assert_array_equal(draw.render(visual, 96, 96), before)
    draw.close()


def test_cameras_of_three_kinds_move_as_they_should(scene):
    env = scene(SCENE)
    fixed = CameraSpec("fixed", (1, 1, 1), look_at=(0, 0, 0))
    rigid = CameraSpec("rigid", (0.1, 0.2, 0.3), look_at=(0, 0, 0), body="free")
    track = CameraSpec("track", (0.1, 0.2, 0.3), look_at=(0, 0, 0), body="free", follow="track")
    still = CameraSpec("still", (0.1, 0.2, 0.3), look_at=(0, 0, 0), body="marker")
    visual = VisualModel(env.fullpath, env.model, [fixed, rigid, track, still])
    shake(env.model, env.data, np.random.default_rng(1))
    visual.sync(env.model, env.data)
    mujoco.mj_kinematics(env.model, env.data)
    body = env.data.body("free")
    poses = visual.poses()
    np.testing.assert_allclose(poses[0, :3, 3], [1, 1, 1])
    np.testing.assert_allclose(poses[1, :3, 3], body.xpos + body.xmat.reshape(3, 3) @ [0.1, 0.2, 0.3], atol=1e-9)
    np.testing.assert_allclose(poses[2, :3, 3], body.xpos + [0.1, 0.2, 0.3], atol=1e-9)
    look = -np.array([0.1, 0.2, 0.3]) / np.linalg.norm([0.1, 0.2, 0.3])
    np.testing.assert_allclose(poses[1, :3, 2], body.xmat.reshape(3, 3) @ look, atol=1e-9)
    np.testing.assert_allclose(poses[2, :3, 2], look, atol=1e-9)
    np.testing.assert_allclose(poses[3, :3, 3], env.data.body("marker").xpos + [0.1, 0.2, 0.3], atol=1e-9)


def test_tracking_is_along_world_axes_also_for_bodies_that_start_turned(scene):
    env = scene(
        '<worldbody><body name="b" euler="0 0 90" pos="0 0 1"><freejoint/><geom size="0.1"/></body></worldbody>'
    )
    track = CameraSpec("track", (1, 0, 0), look_at=(0, 0, 0), body="b", follow="track")
    visual = VisualModel(env.fullpath, env.model, [track])
    visual.sync(env.model, env.data)
    np.testing.assert_allclose(visual.poses()[0, :3, 3], [1, 0, 1], atol=1e-9)
    np.testing.assert_allclose(visual.poses()[0, :3, 2], [-1, 0, 0], atol=1e-9)


@pytest.mark.parametrize(
    "camera, workspace_body, in_workspace, in_world",
    [
        (dict(body=None), None, False, False),
        (dict(body="free"), None, True, True),
        (dict(body="marker"), None, False, False),
        (dict(body=None), "free", True, False),
        (dict(body="free", follow="track"), "free", False, True),
        (dict(body="free", follow="rigid"), "free", True, True),
        (dict(body="arm", follow="track"), "free", True, True),
        (dict(body=None), "marker", False, False),
    ],
)
def test_knows_whether_its_cameras_move(scene, camera, workspace_body, in_workspace, in_world):
    env = scene(SCENE)
    workspace = WorkspaceSpec((0, 0, 0), (1, 1, 1), workspace_body)
    spec = CameraSpec("c", (0.1, 0.2, 0.3), look_at=(0, 0, 0), **camera)
    visual = VisualModel(env.fullpath, env.model, [spec], workspace=workspace)
    assert (visual.moves_in_workspace, visual.moves_in_world) == (in_workspace, in_world)
    poses = []
    for seed in (0, 1):
        shake(env.model, env.data, np.random.default_rng(seed))
        visual.sync(env.model, env.data)
        poses.append(visual.poses())
    assert (not np.allclose(*poses, atol=1e-9)) == in_workspace


def test_equal_models_have_one_key_and_different_ones_two(scene):
    env, other = scene(SCENE), scene(SCENE.replace("0.9 0.8 0.1", "0.8 0.8 0.1"))
    key = VisualModel(env.fullpath, env.model, [CAMERA]).key
    env.model.geom_rgba[:] = 0.3  # what is copied with every state is no part of it
    assert VisualModel(env.fullpath, env.model, [CAMERA]).key == key
    assert VisualModel(other.fullpath, other.model, [CAMERA]).key != key
    assert VisualModel(env.fullpath, env.model, [CAMERA, CameraSpec("d", (1, 1, 1), (0, 0, 0))]).key != key


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(cameras=[]), "at least one"),
        (dict(cameras=[CAMERA, CAMERA]), "two cameras are named 'c'"),
        (
            dict(cameras=[CameraSpec("c", (0, 0, 1), (1, 0, 0), body="bal")]),
            "body of camera 'c' 'bal': did you mean 'ball'",
        ),
        (dict(movable=["markers"]), "unknown movable body 'markers': did you mean 'marker'"),
        (dict(workspace=WorkspaceSpec((0, 0, 0), (1, 1, 1), "fre")), "did you mean 'free'"),
    ],
)
def test_unknown_names_are_refused(scene, arguments, message):
    env = scene(SCENE)
    with pytest.raises(UserError) as caught:
        VisualModel(env.fullpath, env.model, **{"cameras": [CAMERA], **arguments})
    assert message in str(caught.value)


def test_a_file_that_is_not_the_physics_model_is_refused(scene):
    env, other = scene(SCENE), scene('<worldbody><geom size="1"/></worldbody>')
    with pytest.raises(UserError, match="must be the one from which the environment was loaded"):
        VisualModel(other.fullpath, env.model, [CAMERA])
