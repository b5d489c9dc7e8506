"""The shapes of bodies, to say how far a point is from what is seen of a body rather than from its frame's origin.

A robot's link may be half a metre long, with its frame in a joint at one end: a point on the far end of it is nearer to
the next link's origin than to its own. So distances go to surfaces: in closed form for MuJoCo's primitives, and to
densely laid points for meshes.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from scipy.spatial import cKDTree

from envs.decimation import read_mesh

SPACING = 0.004
"""Metres between the points that stand for a mesh: distances to it are too large by at most about half of that."""
_SHOWN_GROUPS = 3
"""MuJoCo draws geoms of the first groups; the others hold what only collides."""
_SEGMENTS = 64
"""Most parts that a triangle's edge is divided into."""


@dataclass(frozen=True)
class BodyShape:
    """What is seen of a body, in its own frame.

    :param name: of the body.
    :param geoms: its parts; none for a body that is but a frame, which is then its origin.
    """

    name: str
    geoms: tuple[GeomShape, ...]

    @classmethod
    def of(cls, model: mujoco.MjModel, body: int) -> BodyShape:
        """The shape of a body of a compiled model.

        :param model: whose meshes are in use as they are, simplified or not.
        :param body: its id.
        """
        first, count = model.body_geomadr[body], model.body_geomnum[body]
        shown = [g for g in range(first, first + count) if is_shown(model, g)]
        return cls(model.body(body).name, tuple(GeomShape.of(model, geom) for geom in shown))

    def distance(self, points: np.ndarray) -> np.ndarray:
        """From points to the nearest part; 0 inside of one.

        :param points: (..., 3) in the body's frame, metres.
        :return: (...) metres.
        """
        if not self.geoms:
            return np.linalg.norm(points, axis=-1)
        return np.min([geom.distance(points) for geom in self.geoms], axis=0)

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) corners of a box around the shape, metres in the body's frame; the origin where there is no shape."""
        if not self.geoms:
            return np.zeros((8, 3))
        every = np.concatenate([geom.corners for geom in self.geoms])
        return _box(every.min(0), every.max(0))


@dataclass(frozen=True)
class GeomShape:
    """One geom.

    :param kind: of ``mujoco.mjtGeom``.
    :param size: (3,) as MuJoCo has it, metres.
    :param position: (3,) in the body's frame.
    :param rotation: (3, 3) from the geom's frame to the body's.
    :param surface: points on a mesh, in the geom's frame; None for primitives.
    :param triangles: (M, 3, 3) corners of that mesh's faces.
    """

    kind: mujoco.mjtGeom
    size: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    surface: cKDTree | None = None
    triangles: np.ndarray | None = None

    @classmethod
    def of(cls, model: mujoco.MjModel, geom: int) -> GeomShape:
        """A geom of a compiled model.

        :param model: the model.
        :param geom: its id.
        """
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        kind, surface, triangles = mujoco.mjtGeom(model.geom_type[geom]), None, None
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = read_mesh(model, int(model.geom_dataid[geom]))
            surface = cKDTree(surface_points(mesh.vertices, mesh.faces, SPACING))
            triangles = np.asarray(mesh.vertices, np.float64)[mesh.faces]
        frame = model.geom_pos[geom].copy(), rotation.reshape(3, 3)
        return cls(kind, model.geom_size[geom].copy(), *frame, surface, triangles)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """From points to the geom; 0 inside of it.

        :param points: (..., 3) in the body's frame, metres.
        :return: (...) metres.
        """
        own = (np.asarray(points, np.float64) - self.position) @ self.rotation
        if self.surface is not None:
            flat = own.reshape(-1, 3)
            away = self.surface.query(flat)[0]
            within = ((flat >= self.surface.mins) & (flat <= self.surface.maxes)).all(-1)
            away[within] = np.where(is_inside(self.triangles, flat[within]), 0.0, away[within])
            return away.reshape(own.shape[:-1])
        return np.maximum(_PRIMITIVES[self.kind](own, self.size), 0.0)

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) corners of a box around the geom, in the body's frame."""
        if self.surface is not None:
            low, high = self.surface.mins, self.surface.maxes
        else:
            reach = _REACH[self.kind](self.size)
            low, high = -reach, reach
        return _box(low, high) @ self.rotation.T + self.position


def winding_numbers(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How often a surface goes round points: 1 inside of a closed one, 0 outside, in between where it has holes.

    The sum of the triangles' solid angles (van Oosterom and Strackee, 1983) over a whole sphere's.

    :param triangles: (M, 3, 3) corners.
    :param points: (P, 3).
    :return: (P,).
    """
    found = np.empty(len(points))
    for part in np.array_split(np.arange(len(points)), 1 + len(points) * len(triangles) // 500_000):
        a, b, c = np.moveaxis(triangles - points[part, None, None], 2, 0)  # (P, M, 3) each
        la, lb, lc = (np.linalg.norm(corner, axis=-1) for corner in (a, b, c))
        volume = np.einsum("pmi,pmi->pm", a, np.cross(b, c))
        ab, bc, ca = (np.einsum("pmi,pmi->pm", p, q) for p, q in ((a, b), (b, c), (c, a)))
        angles = 2.0 * np.arctan2(volume, la * lb * lc + ab * lc + bc * la + ca * lb)
        found[part] = angles.sum(-1) / (4.0 * np.pi)
    return found


def is_inside(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(P,) bool: which points (P, 3) a surface of triangles (M, 3, 3) encloses, whichever way these turn."""
    return np.abs(winding_numbers(triangles, points)) > 0.5


def surface_points(vertices: np.ndarray, faces: np.ndarray, spacing: float) -> np.ndarray:
    """Points on all triangles of a mesh, none of which is further than ``spacing`` from its neighbours.

    :param vertices: (N, 3) metres.
    :param faces: (M, 3) indices of vertices.
    :param spacing: metres.
    :return: (P, 3).
    """
    corners = np.asarray(vertices, np.float64)[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(-1)
    parts = np.clip(np.ceil(longest / spacing), 1, _SEGMENTS).astype(int)
    laid = [_on_triangles(corners[parts == count], count) for count in np.unique(parts)]
    return np.unique(np.concatenate([vertices[np.unique(faces)], *laid]), axis=0)


def _on_triangles(corners: np.ndarray, parts: int) -> np.ndarray:
    """A grid on triangles (M, 3, 3) whose edges are divided into so many parts."""
    first, second = np.meshgrid(np.arange(parts + 1), np.arange(parts + 1))
    inside = first + second <= parts
    weights = np.stack([first[inside], second[inside], parts - (first + second)[inside]], -1) / parts
    return np.einsum("pk,mkd->mpd", weights, corners).reshape(-1, 3)


def is_shown(model: mujoco.MjModel, geom: int) -> bool:
    """Whether a geom of a compiled model is drawn.

    :param model: the model.
    :param geom: its id.
    """
    material = model.geom_matid[geom]
    opacity = model.geom_rgba[geom, 3] if material < 0 else model.mat_rgba[material, 3] * model.geom_rgba[geom, 3]
    drawable = int(model.geom_type[geom]) in _PRIMITIVES or model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
    return bool(drawable and opacity > 0 and model.geom_group[geom] < _SHOWN_GROUPS)


def _box(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])


# Signed distances of points in a primitive's own frame; sizes are MuJoCo's (half lengths and radii).
def _sphere(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=-1) - size[0]


def _capsule(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    axis = np.zeros_like(points)
    axis[..., 2] = np.clip(points[..., 2], -size[1], size[1])
    return np.linalg.norm(points - axis, axis=-1) - size[0]


def _cylinder(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    beyond = np.stack([np.hypot(points[..., 0], points[..., 1]) - size[0], np.abs(points[..., 2]) - size[1]], -1)
    return _outside(beyond)


def _cuboid(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    return _outside(np.abs(points) - size)


def _ellipsoid(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    """To first order, exact on the surface."""
    scaled = np.linalg.norm(points / size, axis=-1)
    gradient = np.linalg.norm(points / size**2, axis=-1)
    return scaled * (scaled - 1.0) / np.maximum(gradient, 1e-12)


def _plane(points: np.ndarray, size: np.ndarray) -> np.ndarray:
    return points[..., 2]


def _outside(beyond: np.ndarray) -> np.ndarray:
    """From how far a point is beyond each pair of sides to how far it is outside."""
    return np.linalg.norm(np.maximum(beyond, 0.0), axis=-1) + np.minimum(beyond.max(-1), 0.0)


_PRIMITIVES = {
    mujoco.mjtGeom.mjGEOM_SPHERE: _sphere,
    mujoco.mjtGeom.mjGEOM_CAPSULE: _capsule,
    mujoco.mjtGeom.mjGEOM_CYLINDER: _cylinder,
    mujoco.mjtGeom.mjGEOM_BOX: _cuboid,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: _ellipsoid,
    mujoco.mjtGeom.mjGEOM_PLANE: _plane,
}
_REACH = {
    mujoco.mjtGeom.mjGEOM_SPHERE: lambda size: np.full(3, size[0]),
    mujoco.mjtGeom.mjGEOM_CAPSULE: lambda size: np.array([size[0], size[0], size[0] + size[1]]),
    mujoco.mjtGeom.mjGEOM_CYLINDER: lambda size: np.array([size[0], size[0], size[1]]),
    mujoco.mjtGeom.mjGEOM_BOX: lambda size: size,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: lambda size: size,
    mujoco.mjtGeom.mjGEOM_PLANE: lambda size: np.array([size[0], size[1], 0.0]),
}
