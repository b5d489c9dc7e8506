"""The visual hull, against a naive march along every pixel's ray and against the simulator's segmentation."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from agents.scene import Scene
from envs.registry import make
from kp3d_rl.cameras import Workspace
from kp3d_rl.hull import FINENESS, VisualHull, voxels
from tests.dotworld import dot_scene, draw_dot

SIZE = 32


def marched(scene: Scene, box: Workspace, silhouettes: np.ndarray) -> np.ndarray:
    """(V, H, W) bool, in float64: some place in the box on the pixel's ray is denied by none of the other views."""
    rig, (views, height, width) = scene.cameras, silhouettes.shape
    kept = np.zeros_like(silhouettes)
    for view, row, column in zip(*np.nonzero(silhouettes), strict=True):
        lens, pose = rig.intrinsics[view], rig.world_from_camera[view]
        ray = pose[:3, :3] @ np.linalg.solve(lens, [column + 0.5, row + 0.5, 1.0])
        places = pose[:3, 3] + np.linspace(0.4, 2.2, 600)[:, None] * ray
        possible = (np.abs(places - box.centre.numpy()) <= box.half_extents.numpy()).all(1)
        for other in range(views):
            u, v, depth = (
                rig.intrinsics[other]
                @ np.linalg.solve(rig.world_from_camera[other], np.column_stack([places, np.ones(len(places))]).T)[:3]
            )
            u, v = u / depth, v / depth
            inside = (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
            at = np.where(inside, v, 0).astype(int), np.where(inside, u, 0).astype(int)
            possible &= ~inside | silhouettes[other][at]
        kept[view, row, column] = possible.any()
    return kept


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    pooled = torch.nn.functional.max_pool2d(torch.as_tensor(mask)[None].float(), 2 * by + 1, 1, by)
    return pooled[0].numpy() > 0


@pytest.mark.parametrize("half_extents", [(0.12, 0.12, 0.12), (0.2, 0.05, 0.1)])
def test_it_keeps_what_a_march_along_the_rays_keeps_and_little_more(half_extents: tuple[float, ...]) -> None:
    scene, box = dot_scene(), Workspace.from_arrays([0.02, 0, -0.01], half_extents)
    hull = VisualHull(scene.rig, box)
    generator, kept, dropped = np.random.default_rng(0), 0, 0
    for _ in range(4):
        dots = [draw_dot(scene, dot) != scene.background for dot in generator.uniform(-0.25, 0.25, (3, 3))]
        seen = np.any(dots, axis=(0, -1))
        found = hull(torch.as_tensor(seen)[None])[0].numpy()
        exact = marched(scene, box, seen)
        assert not (found & ~seen).any() and not (exact & ~found).any()
        loose = grown(marched(scene, box, grown(seen, 2 * hull.cell)), 2 * hull.cell)
        assert not (found & ~loose).any()
        kept, dropped = kept + found.sum(), dropped + (seen & ~found).sum()
    assert kept > 30 and dropped > 50


def test_each_of_a_batch_is_carved_on_its_own() -> None:
    scene, box = dot_scene(), Workspace.from_arrays([0, 0, 0], [0.1] * 3)
    hull = VisualHull(scene.rig, box)
    dots = ((0.0, 0.0, 0.0), (0.2, 0.2, 0.2), (0.05, -0.05, 0.0))
    seen = torch.as_tensor(np.stack([(draw_dot(scene, np.array(dot)) != scene.background).any(-1) for dot in dots]))
    together = hull(seen)
    assert torch.equal(together, torch.cat([hull(one[None]) for one in seen]))
    assert torch.equal(together[0], seen[0]) and torch.equal(together[2], seen[2]) and not together[1].any()
    many = seen[torch.arange(150) % 3]
    assert torch.equal(hull(many), together[torch.arange(150) % 3]), "more than the bits of a word, and no multiple"
    assert not hull.state_dict(), "it follows from cameras and box"


def test_a_single_camera_keeps_what_its_rays_through_the_box_show() -> None:
    scene = dot_scene(((1.0, 0.0, 0.4),))
    box = Workspace.from_arrays([0, 0, 0], [0.1] * 3)
    everywhere = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    found = VisualHull(scene.rig, box)(everywhere)[0].numpy()
    exact = marched(scene, box, everywhere[0].numpy())
    assert 0.05 < exact.mean() < 0.6 and not (exact & ~found).any() and not (found & ~grown(exact, 3)).any()


def test_what_another_view_has_not_in_sight_it_cannot_deny() -> None:
    """Of a box far larger than the views, the corner that one camera alone sees stays."""
    scene, box = dot_scene(), Workspace.from_arrays([0, 0, 0], [0.6] * 3)
    seen = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bool)
    seen[0, 0, 2, 2] = True
    exact = marched(scene, box, seen[0].numpy())
    assert exact[0, 2, 2] and VisualHull(scene.rig, box)(seen)[0, 0, 2, 2]


def test_voxels_fill_the_box_evenly() -> None:
    box = Workspace.from_arrays([0.5, 0, 1], [0.32, 0.16, 0.1])
    points, pitch = voxels(box)
    assert pitch == pytest.approx(0.64 / FINENESS) and len(points) == 64 * 32 * 20
    assert box.contains(points).all()
    torch.testing.assert_close(points.mean(0), box.centre, atol=1e-6, rtol=0)
    for axis in range(3):
        steps = points[:, axis].unique().diff()
        assert (steps > 0.9 * pitch).any() and steps.max() < 1.01 * pitch


def test_of_a_robot_it_keeps_what_is_in_the_box_and_drops_the_arm_behind() -> None:
    """Sawyer's upper arm reaches in from beside the box, in front of which two cameras see it."""
    env = make("metaworld-pick-place", height=64, width=64)
    scene = Scene.of(env)
    hull = VisualHull(scene.rig, scene.workspace)
    env.action_space.seed(0)
    kept: dict[str, list[float]] = {}
    for seed in range(6):
        env.reset(seed=seed)
        action = env.action_space.sample()
        for _ in range(20):
            observation = env.step(action)[0]
        difference = np.abs(observation["images"].astype(int) - scene.background).max(-1)
        seen, segments, model = difference > 25, env.segment_views(), env.unwrapped.model
        found = hull(torch.as_tensor(seen)[None])[0].numpy()
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, body) for body in model.geom_bodyid]
        for body in ("obj", "right_l2", "right_l3"):
            geoms = [geom for geom, name in enumerate(names) if name == body]
            mine = seen & np.isin(segments, geoms)
            if mine.sum() > 3:
                kept.setdefault(body, []).append((found & mine).sum() / mine.sum())
    assert min(kept["obj"]) == 1 and np.mean(kept["right_l2"] + kept["right_l3"]) < 0.3, kept
    env.close()
