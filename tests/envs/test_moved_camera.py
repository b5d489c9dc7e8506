"""A moved camera stands where it says, sees from there, and comes back."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs import registry
from envs.cameras import CameraSpec, save_cameras
from envs.errors import UserError
from envs.moved_camera import MovedCamera
from envs.multiview import MultiViewObservation
from tests.envs.test_projection import project

SIZE = 64
MOUNTED = {
    "fixed": CameraSpec("it", (1.2, 0.5, 0.9), look_at=(0.2, 0.0, 0.3)),
    "on the hand": CameraSpec("it", (0.25, 0.0, -0.2), look_at=(0.0, 0.0, 0.1), up=(0, 1, 0), fovy=80.0, body="hand"),
    "following": CameraSpec("it", (0.8, 0.6, 0.5), look_at=(0.0, 0.0, 0.0), body="hand", follow="track"),
}


def moved_env(mounted: str, folder: Path, **options: float) -> MovedCamera:
    save_cameras(folder / "it.yaml", [MOUNTED[mounted]])
    env = registry.make("reach-multiview", cameras=folder / "it.yaml", height=SIZE, width=SIZE)
    return MovedCamera(env, 0, **options)


@pytest.mark.parametrize("mounted", MOUNTED)
def test_it_moves_and_turns_by_just_so_much_and_comes_back(mounted: str, tmp_path: Path) -> None:
    env = moved_env(mounted, tmp_path)
    own = {}
    for seed in range(3):
        env.env.reset(seed=seed)
        own[seed] = env.get_wrapper_attr("camera_poses")()[0].astype(float)
    places = []
    for seed in (0, 1, 2, 0):
        env.reset(seed=seed)
        pose = env.get_wrapper_attr("camera_poses")()[0].astype(float)
        assert np.linalg.norm(pose[:3, 3] - own[seed][:3, 3]) == pytest.approx(0.1, abs=1e-5)
        cosine = (np.trace(pose[:3, :3] @ own[seed][:3, :3].T) - 1) / 2
        assert np.degrees(np.arccos(cosine)) == pytest.approx(10, abs=0.01)
        places.append(pose)
    np.testing.assert_allclose(places[0], places[3], atol=1e-6)
    assert np.abs(places[0] - places[1]).max() > 0.01, "elsewhere in each episode"
    env.restore()
    env.env.reset(seed=0)
    np.testing.assert_allclose(env.get_wrapper_attr("camera_poses")()[0], own[0], atol=1e-6)
    env.close()


@pytest.mark.parametrize("mounted", MOUNTED)
def test_what_it_sees_is_what_it_says(mounted: str, tmp_path: Path, require_renderer) -> None:
    """Projected centres of geoms that its rays reach lie on those geoms' pixels."""
    require_renderer("gl")
    env, hits = moved_env(mounted, tmp_path, metres=0.15, degrees=12), []
    visual = env.get_wrapper_attr("synced_visual")
    for seed in range(6):
        env.reset(seed=seed)
        model, data = visual().model, visual().data
        rig, segments = env.get_wrapper_attr("rig"), env.get_wrapper_attr("segment_views")()
        uv, depth = project(rig, data.geom_xpos)
        eye, met = rig.world_from_camera[0, :3, 3], np.zeros(1, np.int32)
        for geom in range(model.ngeom):
            ray = data.geom_xpos[geom] - eye
            mujoco.mj_ray(model, data, eye, ray, np.array([1, 1, 1, 0, 0, 0], np.uint8), 1, -1, met)
            column, row = np.floor(uv[0, geom]).astype(int)
            if met[0] == geom and depth[0, geom] > 0 and 0 <= row < SIZE and 0 <= column < SIZE:
                hits.append(segments[0, row, column] == geom)
    env.close()
    assert len(hits) >= 10 and np.mean(hits) >= 0.9


def test_physics_and_the_other_cameras_stay(require_renderer) -> None:
    require_renderer("gl")
    plain = registry.make("reach-multiview", height=16, width=16)
    moved = MovedCamera(registry.make("reach-multiview", height=16, width=16), 1)
    first, second = plain.reset(seed=5)[0], moved.reset(seed=5)[0]
    for _ in range(3):
        np.testing.assert_array_equal(first["images"][[0, 2]], second["images"][[0, 2]])
        assert (first["images"][1] != second["images"][1]).any()
        np.testing.assert_array_equal(first["proprio"], second["proprio"])
        action = plain.action_space.sample()
        first, second = plain.step(action)[0], moved.step(action)[0]
    background = moved.get_wrapper_attr("background")
    moved.restore()
    assert (moved.get_wrapper_attr("background") != background).any(), "the background is that of the present place"
    plain.close(), moved.close()


def test_a_camera_that_is_not_there_is_named() -> None:
    env = registry.make("reach-multiview", height=16, width=16)
    assert isinstance(env, MultiViewObservation)
    with pytest.raises(UserError, match="there is no camera 3: the cameras left, right, front count from 0"):
        MovedCamera(env, 3)
    env.close()
