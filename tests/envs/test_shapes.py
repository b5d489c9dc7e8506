"""Distances to bodies are those that MuJoCo's collision routines and its rays find."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
import pytest

from envs import registry
from envs.shapes import SPACING, BodyShape, is_inside, surface_points, winding_numbers
from tests.tasks import TESTED

PRIMITIVES = {
    "sphere": "0.05",
    "capsule": "0.03 0.08",
    "cylinder": "0.04 0.07",
    "box": "0.05 0.02 0.09",
}
CORNERS = "-.05 -.02 -.09 .05 -.02 -.09 -.05 .02 -.09 .05 .02 -.09 -.05 -.02 .09 .05 -.02 .09 -.05 .02 .09 .05 .02 .09"


def compiled(geoms: str, assets: str = "") -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(f"""<mujoco><asset>{assets}</asset><worldbody>
      <body name="thing">{geoms}</body>
      <body name="point" mocap="true"><geom name="point" size="0.0001"/></body></worldbody></mujoco>""")


def true_distances(model: mujoco.MjModel, points: np.ndarray, geoms: list[int]) -> np.ndarray:
    """By MuJoCo's own collision routines, 0 inside."""
    data, point, found = mujoco.MjData(model), model.geom("point").id, []
    for where in points:
        data.mocap_pos[0] = where
        mujoco.mj_kinematics(model, data)
        near = min(mujoco.mj_geomDistance(model, data, geom, point, 10.0, np.empty(6)) for geom in geoms)
        found.append(max(0.0, near + 1e-4))
    return np.array(found)


@pytest.mark.parametrize("kind", PRIMITIVES)
def test_primitives_are_as_far_as_the_collision_routines_say(kind: str) -> None:
    model = compiled(f'<geom type="{kind}" size="{PRIMITIVES[kind]}" pos=".1 -.2 .05" euler="30 50 -70"/>')
    shape = BodyShape.of(model, model.body("thing").id)
    points = np.random.default_rng(0).uniform(-0.3, 0.3, (60, 3)) + [0.1, -0.2, 0.05]
    points[:10] = [0.1, -0.2, 0.05] + 0.01 * np.random.default_rng(1).normal(size=(10, 3))  # inside
    found = shape.distance(points)
    np.testing.assert_allclose(found, true_distances(model, points, [0]), atol=2e-4)
    assert (found[:10] == 0).any() and (found[10:] > 0.05).any()


def test_ellipsoids_are_right_to_first_order() -> None:
    model = compiled('<geom type="ellipsoid" size="0.05 0.02 0.09" euler="30 50 -70"/>')
    shape = BodyShape.of(model, model.body("thing").id)
    directions = np.random.default_rng(0).normal(size=(200, 3))
    points = (
        directions * (np.random.default_rng(1).uniform(0.02, 0.15, 200) / np.linalg.norm(directions, axis=1))[:, None]
    )
    true = true_distances(model, points, [0])
    near = true < 0.01
    assert near.sum() > 30
    np.testing.assert_allclose(shape.distance(points)[near], true[near], atol=2e-3)


def test_the_nearest_part_counts_and_what_is_not_drawn_does_not() -> None:
    hidden = '<geom size=".01" pos="1 0 0" group="3"/><geom size=".01" pos="0 1 0" rgba="1 1 1 0"/>'
    model = compiled(f'<geom size="0.05"/><geom type="box" size=".02 .02 .02" pos=".3 0 0"/>{hidden}')
    shape = BodyShape.of(model, model.body("thing").id)
    points = np.random.default_rng(0).uniform(-0.5, 1.0, (40, 3))
    np.testing.assert_allclose(shape.distance(points), true_distances(model, points, [0, 1]), atol=2e-4)
    assert len(shape.geoms) == 2
    corners = shape.corners
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [[-0.05] * 3, [0.32, 0.05, 0.05]])
    bare = compiled('<inertial mass="1" pos="0 0 0" diaginertia="1 1 1"/>')
    frame = BodyShape.of(bare, bare.body("thing").id)
    assert frame.distance(np.array([[3.0, 4.0, 0.0]])) == 5 and not frame.corners.any()


def test_meshes_are_as_far_as_their_surface() -> None:
    """A box as a mesh, against the box: the same from outside, and nothing inside."""
    assets = f'<mesh name="m" vertex="{CORNERS}"/>'
    model = compiled('<geom type="mesh" mesh="m" pos=".1 0 0" euler="20 0 40"/>', assets)
    shape = BodyShape.of(model, model.body("thing").id)
    points = np.random.default_rng(0).uniform(-0.2, 0.3, (80, 3))
    true = true_distances(model, points, [0])
    found = shape.distance(points)
    outside = true > 0
    assert outside.sum() > 50
    assert (found[outside] >= true[outside] - 2e-4).all() and (found[outside] <= true[outside] + 0.6 * SPACING).all()
    deep = np.array([0.1, 0, 0]) + np.random.default_rng(1).uniform(-0.01, 0.01, (50, 3))
    assert (true_distances(model, deep, [0]) <= 0).all() and not shape.distance(deep).any()


def test_no_place_on_a_triangle_is_far_from_its_points() -> None:
    rng = np.random.default_rng(0)
    vertices, faces = rng.uniform(-0.1, 0.1, (30, 3)), rng.integers(30, size=(20, 3))
    faces = faces[[len(set(face)) == 3 for face in faces]]
    points = surface_points(vertices, faces, 0.01)
    for corners in vertices[faces]:
        weights = rng.dirichlet([1, 1, 1], 50)
        gaps = np.linalg.norm((weights @ corners)[:, None] - points[None], axis=-1).min(1)
        assert gaps.max() <= 0.01 / np.sqrt(3) + 1e-9


@pytest.mark.parametrize("env_id", TESTED)
def test_what_the_cameras_rays_hit_is_on_the_body_that_they_hit(env_id: str) -> None:
    env = registry.make(env_id, height=16, width=16, observe=("proprio",))
    env.reset(seed=3)
    env.action_space.seed(3)
    for _ in range(5):
        env.step(env.action_space.sample())
    model, data = env.unwrapped.model, copy.copy(env.unwrapped.data)
    mujoco.mj_kinematics(model, data)
    rig, names, hits, origin = env.rig, env.body_names, 0, env.synced_visual().origin
    shapes, poses = dict(zip(names, env.body_shapes(names), strict=True)), env.body_poses(names)
    drawn, body_of = np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros(1, np.int32)
    np.testing.assert_allclose(poses[:, :3, 3], env.body_positions(names))
    for pose, lens in zip(rig.world_from_camera, rig.intrinsics, strict=True):
        for pixel in np.random.default_rng(0).uniform(0, 16, (400, 2)):
            ray = pose[:3, :3] @ np.linalg.solve(lens, [*pixel, 1.0])
            ray /= np.linalg.norm(ray)
            distance = mujoco.mj_ray(model, data, pose[:3, 3] + origin, ray, drawn, 1, -1, body_of)
            name = model.body(int(model.geom_bodyid[body_of[0]])).name if distance >= 0 else ""
            if name not in shapes:
                continue
            pose_of = poses[names.index(name)]
            local = (pose[:3, 3] + distance * ray - pose_of[:3, 3]) @ pose_of[:3, :3]
            assert shapes[name].distance(local) < 0.012, (name, "simplified by at most a centimetre")
            hits += 1
    env.close()
    assert hits >= 10


def test_the_winding_number_tells_inside_from_outside_of_any_closed_surface() -> None:
    """An L of two boxes' union would fool its convex hull; so does this bent prism."""
    outline = np.array([[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2.0]])
    caps = [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5]]
    low, high = (np.column_stack([outline, np.full(6, z)]) for z in (0.0, 1.0))
    triangles = [low[face[::-1]] for face in caps] + [high[face] for face in caps]
    for i in range(6):
        j = (i + 1) % 6
        triangles += [[low[i], low[j], high[j]], [low[i], high[j], high[i]]]
    triangles = np.array(triangles)
    points = np.array([(0.5, 1.5, 0.5), (1.5, 0.5, 0.2), (1.5, 1.5, 0.5), (3, 0, 0)])
    np.testing.assert_allclose(winding_numbers(triangles, points), [1, 1, 0, 0], atol=1e-9)
    assert is_inside(triangles[:, ::-1], points).tolist() == [True, True, False, False]
    many = np.random.default_rng(0).uniform(-1, 3, (60_000, 3))
    x, y, z = many.T
    within = (x > 0) & (y > 0) & (z > 0) & (z < 1) & (((x < 2) & (y < 1)) | ((x < 1) & (y < 2)))
    assert (is_inside(triangles, many) == within).all() and within.sum() > 1000
