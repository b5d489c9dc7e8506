"""Geometry against the renderer: what a camera's intrinsics and pose say is where things are in its image."""

import mujoco
import numpy as np
import pytest
import torch

from envs.cameras import CameraSpec, load_cameras
from envs.multiview import MultiViewObservation
from envs.registry import make
from envs.tasks.arm import ASSETS
from envs.tasks.reach import ReachEnv
from kp3d_rl.cameras import Rig
from tests.tasks import TESTED

SIZE = 192  # pixels: geometry is the same at any size, and edges matter less in large images
FOREIGN = {"Ant-v5": "ant.yaml", "Reacher-v5": "reacher.yaml"}


def project(rig, points):
    """(V, K, 2) pixels and (V, K) depths of points (K, 3), from the definitions, in float64."""
    camera_from_world = np.linalg.inv(rig.world_from_camera)
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    in_camera = np.einsum("vij,kj->vki", camera_from_world, homogeneous)[..., :3]
    pixels = np.einsum("vij,vkj->vki", rig.intrinsics, in_camera)
    return pixels[..., :2] / pixels[..., 2:], in_camera[..., 2]


@pytest.fixture(scope="module", params=[*TESTED, *FOREIGN])
def env(request):
    cameras = ASSETS / "cameras" / FOREIGN[request.param] if request.param in FOREIGN else None
    env = make(request.param, cameras=cameras, height=SIZE, width=SIZE)
    yield env
    env.close()


def present_state(env):
    """The physics model with fresh kinematics, and the world position of the workspace frame's origin."""
    model, data = env.unwrapped.model, mujoco.MjData(env.unwrapped.model)
    data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = (
        env.unwrapped.data.qpos,
        env.unwrapped.data.mocap_pos,
        env.unwrapped.data.mocap_quat,
    )
    mujoco.mj_forward(model, data)
    body = env.workspace.body
    return model, data, np.zeros(3) if body is None else data.body(body).xpos.copy()


def seen_by_ray(model, data, eye, point):
    """Id of the first geom between an eye and a point or behind it, by MuJoCo's ray casting (no renderer involved)."""
    geom = np.full(1, -1, np.int32)
    groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # the groups that are drawn
    mujoco.mj_ray(model, data, eye, point - eye, groups, 1, -1, geom, None)
    return geom[0]


def test_projected_geom_centres_land_on_their_own_geom(env):
    landed = {}
    for seed in range(4):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(3):
            env.step(env.action_space.sample())
        model, data, origin = present_state(env)
        rig, segments = env.rig, env.segment_views()
        uv, depth = project(rig, data.geom_xpos - origin)
        for view, geom in np.ndindex(depth.shape):
            column, row = np.floor(uv[view, geom]).astype(int)
            if depth[view, geom] <= 0 or not (0 <= row < SIZE and 0 <= column < SIZE):
                continue
            eye = rig.world_from_camera[view, :3, 3] + origin
            if segments[view, row, column] >= model.ngeom:
                continue  # a marker hangs before it, of which the ray knows nothing
            if seen_by_ray(model, data, eye, data.geom_xpos[geom]) == geom:
                around = segments[view, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] == geom
                landed.setdefault(view, []).append((segments[view, row, column] == geom, around.any()))
    assert sorted(landed) == list(range(len(env.rig.names)))  # every camera saw something
    # Of Meta-World's fifty some show so few and small things that two edges are more than a twentieth.
    many_edges = getattr(env.unwrapped, "task", "hammer") not in ("hammer", "pick-place")
    for hits in landed.values():
        exact, beside = np.sum(hits, axis=0)  # others: a pixel from an edge
        nearly_all = min(0.95 * len(hits), len(hits) - 1)
        assert len(hits) >= 8 and beside >= nearly_all and exact >= (0.85 * len(hits) if many_edges else nearly_all)


def test_every_pixel_shows_what_its_ray_hits(env):
    env.reset(seed=7)
    model, data, origin = present_state(env)
    rig, segments = env.rig, env.segment_views()
    pixels = np.random.default_rng(0).integers(0, SIZE, (150, 2))
    for view in range(len(rig.names)):
        agree = []
        eye, turn = rig.world_from_camera[view, :3, 3] + origin, rig.world_from_camera[view, :3, :3]
        for row, column in pixels:
            direction = turn @ np.linalg.inv(rig.intrinsics[view]) @ [column + 0.5, row + 0.5, 1.0]
            if segments[view, row, column] != -2:  # rays know no cloth
                agree.append(seen_by_ray(model, data, eye, eye + direction) == segments[view, row, column])
        assert np.mean(agree) >= 0.97


def test_workspace_box_is_inside_every_image(env):
    env.reset(seed=0)
    uv, depth = project(env.rig, env.workspace.corners())
    standing = [camera.body is None or camera.follow == "track" for camera in env._visual.cameras]
    uv, depth = uv[standing], depth[standing]  # one on a wrist looks at what the hand is near
    assert len(uv) >= 2
    assert np.all(depth > 0)
    assert np.all(uv > 0.01 * SIZE) and np.all(uv < 0.99 * SIZE)
    if env.workspace.body is None:  # and it fills most of it
        assert np.all(np.ptp(uv, axis=1).max(axis=1) > 0.6 * SIZE)


def test_the_learning_side_projects_alike(env):
    env.reset(seed=0)
    rig = env.rig
    points = env.workspace.corners() * 0.9
    learning = Rig.from_arrays(rig.intrinsics, rig.world_from_camera, rig.height, rig.width, dtype=torch.float64)
    uv, depth = learning.project(torch.from_numpy(points))
    expected_uv, expected_depth = project(rig, points)
    np.testing.assert_allclose(uv.numpy(), expected_uv, atol=1e-9)
    np.testing.assert_allclose(depth.numpy(), expected_depth, atol=1e-12)


def test_positions_poses_and_boxes_share_one_frame(env):
    """A named body's position, projected by the rig, is where the body is in the world."""
    env.reset(seed=2)
    model, data, origin = present_state(env)
    theirs = {model.body(index).name for index in range(model.nbody)}
    names = [name for name in env.body_names if name in theirs]  # the others are markers, or have no name there
    assert len(names) >= sum(map(bool, theirs)) - 1
    expected = np.array([data.body(name).xpos for name in names]) - origin
    np.testing.assert_allclose(env.body_positions(names), expected, atol=1e-9)


@pytest.mark.parametrize("renderer", ["gl", "warp"])
def test_pixel_centres_are_at_half_integers(renderer, require_renderer):
    """The centroid of a ball's pixels is its projected centre, to a quarter of a pixel, in odd image shapes too."""
    require_renderer(renderer)
    ball = np.array([0.72, -0.02, 0.1])  # in front of the arm, on one side of the images' centres
    cameras = [
        CameraSpec("a", (1.4, 0.3, 0.5), look_at=(0.7, 0, 0.08), fovy=15),
        CameraSpec("b", (1.0, 0.7, 0.6), look_at=(0.73, 0, 0.08), fovy=17),
        CameraSpec("c", (1.2, -0.5, 0.9), look_at=(0.7, 0, 0.1), up=(1, 0, 1), fovy=12),
    ]
    env = MultiViewObservation(ReachEnv(), cameras, height=150, width=211, observe=("images",), renderer=renderer)
    env.reset(seed=0)
    env.unwrapped.data.mocap_pos[env.unwrapped.model.body("target").mocapid[0]] = ball
    uv, _ = project(env.rig, ball[None])
    geom = env.unwrapped.model.geom("target_ball").id
    for view, segments in enumerate(env.segment_views()):
        rows, columns = np.nonzero(segments == geom)
        assert len(rows) > 500
        centroid = [columns.mean() + 0.5, rows.mean() + 0.5]
        np.testing.assert_allclose(centroid, uv[view, 0], atol=0.25)
    env.close()


def test_the_presets_differ_by_at_least_60_degrees():
    for env_id in TESTED:
        env = make(env_id)
        directions = env.rig.world_from_camera[:, :3, 3] - env.workspace.centre
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        angles = np.degrees(np.arccos(directions @ directions.T))[np.triu_indices(len(directions), 1)]
        assert np.all(angles > 60)


def test_the_example_files_are_read():
    for name in FOREIGN.values():
        cameras, workspace = load_cameras(ASSETS / "cameras" / name)
        assert len(cameras) == 3 and workspace is not None
