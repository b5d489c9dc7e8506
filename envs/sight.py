"""Refuse cameras that cannot be meant: inside of something, or looking past the workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco
import numpy as np

from envs.cameras import CameraRig, WorkspaceSpec
from envs.decimation import read_mesh
from envs.errors import UserError
from envs.shapes import GeomShape, is_inside, is_shown
from envs.visual_model import VisualModel

if TYPE_CHECKING:
    from envs.multiview import MultiViewObservation

_GRID = 24
"""Rays per side of an image that look for the workspace."""


def require_sight(visual: VisualModel, workspace: WorkspaceSpec) -> None:
    """Refuse the first camera that stands inside of a body, or none of whose rays meets the workspace.

    Judged are those that stand still in the workspace's frame: where one on a gripper looks is not known beforehand.

    :param visual: at any state.
    :param workspace: the task's box.
    :raises UserError: naming the camera and what would be right.
    """
    rig = visual.rig(_GRID, _GRID)
    for number, camera in enumerate(visual.cameras):
        follows = camera.body == workspace.body and camera.follow == "track"
        if camera.body is not None and not follows:
            continue
        body = _body_around(visual, rig.world_from_camera[number, :3, 3] + visual.origin)
        if body is not None:
            raise UserError(f"camera '{camera.name}' stands inside of the body '{body}': move it out")
        if not _meets_box(rig, number, workspace).any():
            x, y, z = workspace.centre
            aim = f"point it at the box's centre, ({x:g}, {y:g}, {z:g})"
            raise UserError(f"camera '{camera.name}' sees nothing of the workspace: {aim}, or widen its fovy")


def bodies_outside(env: MultiViewObservation) -> list[str]:
    """Which of the bodies that a task names are not in the workspace box, where keypoints cannot be.

    :param env: after a reset; of an environment that names no bodies, none is judged.
    """
    names = tuple(getattr(env.unwrapped, "probe_bodies", ()))
    if not names:
        return []
    places = env.workspace.normalise(env.body_positions(names))
    return [name for name, place in zip(names, places, strict=True) if np.abs(place).max() > 1.0]


def _body_around(visual: VisualModel, eye: np.ndarray) -> str | None:
    """Name of the body that a point is inside of."""
    model, data = visual.model, visual.data
    for geom in range(model.ngeom):
        if not is_shown(model, geom):
            continue
        local = data.geom_xmat[geom].reshape(3, 3).T @ (eye - data.geom_xpos[geom])
        if np.linalg.norm(local) > model.geom_rbound[geom] > 0:
            continue
        if _is_inside(model, geom, local):
            return model.body(model.geom_bodyid[geom]).name or "world"
    return None


def _is_inside(model: mujoco.MjModel, geom: int, point: np.ndarray) -> bool:
    """Whether a point (3,) in a geom's frame lies inside of it."""
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = read_mesh(model, int(model.geom_dataid[geom]))
        return bool(is_inside(np.asarray(mesh.vertices, float)[mesh.faces], point[None])[0])
    shape = GeomShape(mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom], np.zeros(3), np.eye(3))
    return bool(shape.distance(point[None])[0] == 0)


def _meets_box(rig: CameraRig, view: int, box: WorkspaceSpec) -> np.ndarray:
    """(N,) bool: which rays of a view meet the box ahead of the camera."""
    pixels = np.stack(np.meshgrid(*[np.arange(_GRID) + 0.5] * 2), -1).reshape(-1, 2)
    pose, lens = rig.world_from_camera[view], rig.intrinsics[view]
    rays = np.linalg.solve(lens, np.column_stack([pixels, np.ones(len(pixels))]).T).T @ pose[:3, :3].T
    rays = np.where(np.abs(rays) < 1e-12, 1e-12, rays)
    walls = np.array([np.subtract(box.centre, box.half_extents), np.add(box.centre, box.half_extents)])
    times = (walls[:, None] - pose[:3, 3]) / rays
    enters, leaves = times.min(0).max(-1), times.max(0).min(-1)
    return (enters <= leaves) & (leaves > 0)
