"""Random objects: their bounds, landmarks and views against vertices, segmentation and projection."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.errors import UserError
from envs.renderers import make_renderer
from envs.scenes.object_views import DISTANCE, FOVY, SHIFT, record_category, record_object
from envs.scenes.objects import CATEGORIES, LANDMARKS, Part, draw_object


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_are_two_units_long_about_the_origin_and_none_is_like_another(category: str) -> None:
    drawn = [draw_object(category, np.random.default_rng(seed)) for seed in range(30)]
    for spec in drawn:
        low, high = spec.bounds()
        np.testing.assert_allclose(low, -high, atol=1e-9)
        assert (high - low).max() == pytest.approx(2.0) and spec.landmarks.shape == (LANDMARKS, 3)
        assert (spec.landmarks >= low - 1e-6).all() and (spec.landmarks <= high + 0.05).all()
    assert len({spec.landmarks.tobytes() for spec in drawn}) == 30 and len({len(spec.parts) for spec in drawn}) > 1
    again = draw_object(category, np.random.default_rng(3))
    assert (again.landmarks == drawn[3].landmarks).all()


@pytest.mark.parametrize("shape", ["box", "cylinder", "capsule", "ellipsoid"])
def test_a_parts_box_holds_just_what_lies_on_it(shape: str) -> None:
    rng = np.random.default_rng(0)
    part = Part(shape, (0.2, 0.5, 0.3), (0, 0, 0), Rotation.random(random_state=1))
    directions = rng.normal(size=(200_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if shape == "box":
        surface = np.sign(directions) * part.size
    elif shape == "ellipsoid":
        surface = directions * part.size
    elif shape == "capsule":
        surface = 0.2 * directions + np.sign(directions[:, 2:]) * [0, 0, 0.5]
    else:
        ring = directions[:, :2] / np.linalg.norm(directions[:, :2], axis=1, keepdims=True)
        surface = np.concatenate([0.2 * ring, 0.5 * np.sign(directions[:, 2:])], 1)
    np.testing.assert_allclose(part.rotation.apply(surface).max(0), part.half_extent(), rtol=0.01)


@pytest.mark.parametrize("category", CATEGORIES)
def test_landmarks_lie_on_what_is_drawn(category: str) -> None:
    """Within a tenth of a unit of a primitive's surface, as MuJoCo measures."""
    for seed in range(10):
        drawn = draw_object(category, np.random.default_rng(seed))
        spec = drawn.to_mjcf()
        for number, place in enumerate(drawn.landmarks):
            body = spec.worldbody.add_body(name=f"mark{number}", pos=place)
            body.add_geom(name=f"mark{number}", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[1e-3, 0, 0])
        model = spec.compile()
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        parts = range(len(drawn.parts))
        for number in range(LANDMARKS):
            mark = model.geom(f"mark{number}").id
            assert min(mujoco.mj_geomDistance(model, data, part, mark, 1.0, None) for part in parts) < 0.1, number


def test_views_show_the_object_where_its_landmarks_are_projected() -> None:
    renderer = make_renderer()
    views = record_category("plane", 6, 5, 64, 0, renderer)
    assert views.images.shape == (6, 5, 64, 64, 3) and views.masks.shape == (6, 5, 64, 64) and len(views) == 6
    assert (views.images[~views.masks] == 0).all() and 0.02 < views.masks.mean() < 0.5
    centres = views.poses[..., :3, 3]
    assert np.abs(np.linalg.norm(centres, axis=-1) - DISTANCE).max() < 3 * SHIFT and centres[..., 2].min() > -SHIFT
    assert views.intrinsics[1, 1] == pytest.approx(32 / np.tan(np.radians(FOVY / 2)))
    in_camera = np.einsum("snji,snlj->snli", views.poses[..., :3, :3], views.landmarks[:, None] - centres[:, :, None])
    uv = in_camera @ views.intrinsics.T
    uv = uv[..., :2] / uv[..., 2:]
    near = [
        views.masks[s, n, max(0, v - 2) : v + 3, max(0, u - 2) : u + 3].any()
        for s, n, k in np.ndindex(6, 5, LANDMARKS)
        for u, v in [uv[s, n, k].astype(int)]
        if (uv[s, n, k] > 2).all() and (uv[s, n, k] < 62).all()
    ]
    assert len(near) > 200 and np.mean(near) > 0.99
    again = record_category("plane", 2, 5, 64, 0, renderer)
    assert (again.images == views.images[:2]).all(), "an object depends on its number and the seed alone"
    renderer.close()


def test_what_cannot_be_drawn_is_said_in_one_line() -> None:
    renderer = make_renderer()
    with pytest.raises(UserError, match="unknown category 'chiar'.*chair"):
        record_category("chiar", 1, 2, 32, 0, renderer)
    far = mujoco.MjSpec()
    far.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.5, 0, 0], pos=[9, 0, 0])
    with pytest.raises(UserError, match="ball is not to be seen from view .: it is out of frame"):
        record_object(far, 4, 32, np.random.default_rng(0), renderer, "ball")
    renderer.close()
