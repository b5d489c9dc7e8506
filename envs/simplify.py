"""Triangle meshes that look the same with fewer faces.

Source of the simplification: Garland and Heckbert, "Surface simplification using quadric error metrics", SIGGRAPH 1997,
as fast-simplification implements it. Robot models are often patches of CAD surfaces that do not share their borders;
simplified as they are, they tear. So several repairs are tried first, borders welded at several distances and a shell
wrapped around all of it, and what looks most like the whole mesh from all sides is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

FACES = (250, 400, 650, 1000, 1500, 2500)
"""Numbers of faces that are tried, the first that is good enough is taken."""
TOLERANCE = 0.05
"""Difference in look that is good enough: a twentieth of what is seen may be off by :data:`LOOK_DEPTH`."""
WELDS = (0.01, 0.02, 0.03)
"""Distances, relative to a mesh's largest side, at which vertices are welded."""
SHELL_CELLS = 20
"""Cells along the largest side of the grid that a shell is wrapped around."""
LOOK_PIXELS = 48
"""Pixels per side of the depth images in which meshes are compared."""
LOOK_DEPTH = 0.3
"""Difference in depth, relative to the largest side, that counts as much as a hole."""
LOOK_SPACING = 0.7
"""Distance of the points that are drawn, in a 48th of the largest side (a pixel is 1.8 of them): dense, so that what is
compared are surfaces and not where the points of each happen to lie."""
INSET = 0.1
"""Way from a new face's corner to its centre that lies between the corner and the place that it looks like."""
SEAM = 2.0
"""Texture coordinates that span so many times what the whole mesh's texture spans there lie on two sides of a seam."""

SETTINGS = (FACES, TOLERANCE, WELDS, SHELL_CELLS, LOOK_PIXELS, LOOK_DEPTH, LOOK_SPACING, INSET, SEAM)
"""All that decides what comes out, for who keeps it."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh whose corners have attributes of their own.

    :param vertices: (n, 3) float32.
    :param faces: (f, 3) int32 indices of vertices, counter-clockwise from outside.
    :param normals: (f, 3, 3) float32 unit normals, one for each corner of each face.
    :param coordinates: (f, 3, 2) float32 texture coordinates of each corner; (0, 3, 2) where there is no texture.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    coordinates: np.ndarray


Surface = tuple[np.ndarray, np.ndarray]
"""Vertices (n, 3) and faces (f, 3) without attributes."""


def simplify(mesh: Mesh, tolerance: float = TOLERANCE) -> Mesh:
    """The same look with fewer faces.

    Corners take normal and texture coordinate from the nearest place of the whole mesh that faces the same way, so that
    edges stay sharp, round things stay shaded as round, and seams of textures stay where they are.

    :param mesh: the whole mesh.
    :param tolerance: largest difference in look, from 0 to 1 (:data:`TOLERANCE`).
    :return: the mesh itself where far fewer faces would look different.
    :raises ValueError: for a mesh without extent.
    """
    centre, size = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0)), float(np.ptp(mesh.vertices, axis=0).max())
    if not np.isfinite(size) or size <= 0.0:
        raise ValueError("it has no extent")
    wanted = _looks((mesh.vertices, mesh.faces), centre, size)
    repaired = _repaired((mesh.vertices, mesh.faces), size)
    for faces in FACES:
        if faces > 0.5 * len(mesh.faces):
            break
        reduced = (_reduce(surface, faces) for surface in repaired)
        found = [surface for surface in reduced if 4 <= len(surface[1]) <= faces]
        errors = [_difference(wanted, _looks(surface, centre, size)) for surface in found]
        if errors and min(errors) <= tolerance:
            vertices, kept = found[int(np.argmin(errors))]
            return Mesh(vertices, kept, *_attributes(mesh, vertices[kept]))
    return mesh


def _repaired(surface: Surface, size: float) -> list[Surface]:
    """The surface with its tears closed in several ways."""
    return [*(_weld(surface, distance * size) for distance in WELDS), _wrap(surface, size / SHELL_CELLS)]


def _reduce(surface: Surface, faces: int) -> Surface:
    """Quadric edge collapse to at most ``faces`` faces, without faces that have no area."""
    import fast_simplification

    vertices, kept = surface
    if len(kept) > faces:
        vertices, kept = fast_simplification.simplify(
            vertices.astype(np.float32), kept.astype(np.int32), target_count=faces
        )
    vertices = vertices.astype(np.float32)
    kept = kept[np.linalg.norm(_cross(vertices[kept]), axis=-1) > 0.0]
    used, index = np.unique(kept, return_inverse=True)
    return vertices[used], index.reshape(-1, 3).astype(np.int32)


def _weld(surface: Surface, distance: float) -> Surface:
    """Vertices in one cell of a grid become one, their mean; faces that vanish or double are dropped."""
    vertices, faces = surface
    _, index, count = np.unique(np.round(vertices / distance), axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    means = np.stack([np.bincount(index, vertices[:, axis]) for axis in range(3)], -1) / count[:, None]
    faces = index[faces]
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    turned = np.take_along_axis(faces, (faces.argmin(1)[:, None] + np.arange(3)) % 3, 1)  # smallest index first
    return means, np.unique(turned, axis=0)


def _wrap(surface: Surface, cell: float) -> Surface:
    """A closed surface around all of a mesh, holes and gaps of about a cell closed, pulled back onto the mesh."""
    from scipy import ndimage, sparse  # half a second of every process's start, for what is kept from then on

    points, _ = _samples(surface, cell / 3.0)
    origin = points.min(0) - 4.0 * cell
    places = np.floor((points - origin) / cell).astype(int)
    filled = np.zeros(places.max(0) + 5, dtype=bool)
    filled[tuple(places.T)] = True
    solid = ndimage.binary_fill_holes(ndimage.binary_dilation(filled))
    solid = ndimage.binary_erosion(solid) | filled
    corners, quads = _boundary(solid)
    vertices = origin + corners * cell
    edges = np.concatenate([quads[:, [n, (n + 1) % 4]] for n in range(4)])
    edges = np.concatenate([edges, edges[:, ::-1]])
    ones = np.ones(len(edges))
    neighbours = sparse.csr_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    neighbours = sparse.diags(1.0 / np.asarray(neighbours.sum(1)).ravel()) @ neighbours
    tree = cKDTree(points)
    for _ in range(3):  # smooth away the steps of the grid, stay on the surface
        vertices = 0.5 * (vertices + neighbours @ vertices)
        vertices = points[tree.query(vertices)[1]]
    return vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _boundary(solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 3) of cells and quadrilaterals (q, 4) between what is solid and what is not, seen from outside."""
    quads = []
    for axis in range(3):
        along, across = np.eye(3, dtype=int)[(axis + 1) % 3], np.eye(3, dtype=int)[(axis + 2) % 3]
        step = np.diff(solid.astype(np.int8), axis=axis)
        for change, order in ((-1, (0, 1, 2, 3)), (1, (3, 2, 1, 0))):
            start = np.argwhere(step == change) + np.eye(3, dtype=int)[axis]
            around = np.stack([start, start + along, start + along + across, start + across], 1)
            quads.append(around[:, order])
    stacked = np.concatenate(quads)
    corners, index = np.unique(stacked.reshape(-1, 3), axis=0, return_inverse=True)
    return corners, index.reshape(-1, 4)


def _samples(surface: Surface, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (p, 3) that cover a surface at about this distance from each other, and the face (p,) of each.

    They lie in rows along each face's longest side, as many as its height asks for, each row with as many points as it
    is long: a thin face costs by its length and not by its square.
    """
    vertices, faces = surface
    corners = vertices[faces].astype(np.float64)
    lengths = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=-1)
    turned = (lengths.argmax(1)[:, None] + np.arange(3)) % 3  # the longest side first, its opposite corner last
    corners = np.take_along_axis(corners, turned[..., None], 1)
    longest = lengths.max(1)
    height = np.linalg.norm(_cross(corners), axis=-1) / np.maximum(longest, 1e-30)
    rows = np.maximum(1, np.ceil(height / distance).astype(int))
    face, row = _count_up(rows + 1)
    up = row / rows[face]
    steps = np.ceil((1.0 - up) * longest[face] / distance).astype(int)
    in_row, step = _count_up(steps + 1)
    owners, up = face[in_row], up[in_row]
    along = (1.0 - up) * step / np.maximum(steps, 1)[in_row]
    points = np.zeros((len(owners), 3))
    for corner, weight in enumerate((1.0 - up - along, along, up)):
        points += weight[:, None] * corners[owners, corner]
    return points, owners


def _count_up(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (n,): each index as often as it counts, and beside it 0, 1, 2 and so on up to its count."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def _looks(surface: Surface, centre: np.ndarray, size: float) -> np.ndarray:
    """(26, pixels, pixels) depth images from all sides, in sizes; -inf where nothing faces the viewer."""
    vertices, faces = surface
    points, owners = _samples(surface, LOOK_SPACING * size / LOOK_PIXELS)
    normals = _cross(vertices[faces])[owners]
    images = np.full((len(_DIRECTIONS), LOOK_PIXELS, LOOK_PIXELS), -np.inf)
    for image, direction in zip(images, _DIRECTIONS, strict=True):
        right = _unit(np.cross([0.0, 0.0, 1.0] if abs(direction[2]) < 0.9 else [1.0, 0.0, 0.0], direction))
        seen = (points[normals @ direction > 0.0] - centre) / size
        axes = np.stack([np.cross(direction, right), right])
        # A box's diagonal is 1.8 times its largest side at most.
        rows, columns = np.clip(((seen @ axes.T / 1.8 + 0.5) * LOOK_PIXELS).astype(int), 0, LOOK_PIXELS - 1).T
        np.maximum.at(image, (rows, columns), seen @ direction)
    return images


def _difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """Mean error over what either shows, 1 where only one of them shows something."""
    both = np.isfinite(wanted) & np.isfinite(found)
    errors = np.ones(wanted.shape)
    errors[both] = np.minimum(1.0, np.abs(wanted[both] - found[both]) / LOOK_DEPTH)
    return float(errors[np.isfinite(wanted) | np.isfinite(found)].mean())


def _attributes(whole: Mesh, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals and texture coordinates of new faces' corners, at (f, 3, 3), from the whole mesh."""
    centres = corners.mean(1, keepdims=True)
    inside = corners + INSET * (centres - corners)  # off the edges: each face asks for its side
    facing = _unit(_cross(corners))
    face, weight = _nearest_faces(whole, np.concatenate([inside, centres], 1), facing)
    normals = _unit((weight[:, :3, :, None] * whole.normals[face[:, :3]]).sum(2))
    normals = np.where(np.isfinite(normals).all(-1, keepdims=True), normals, facing[:, None]).astype(np.float32)
    if not len(whole.coordinates):
        return normals, np.zeros((0, 3, 2), np.float32)
    coordinates = (weight[:, :3, :, None] * whole.coordinates[face[:, :3]]).sum(2)
    middle = coordinates.mean(1, keepdims=True)
    coordinates = middle + (coordinates - middle) / (1.0 - INSET)  # from where was asked out to the corners again
    return normals, _on_one_side_of_seams(whole, corners, coordinates, face).astype(np.float32)


def _nearest_faces(
    whole: Mesh, points: np.ndarray, facing: np.ndarray, candidates: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Faces (f, p) nearest to points (f, p, 3) that face as ``facing`` (f, 3), and weights (f, p, 3) of their corners.

    :param candidates: faces whose centres are nearest, among which is searched.
    """
    old = whole.vertices[whole.faces].astype(np.float64)
    _, near = cKDTree(old.mean(1)).query(points, k=np.arange(1, min(candidates, len(old)) + 1))
    weights = _nearest_in_triangle(points[..., None, :], old[near])
    distances = np.linalg.norm((weights[..., None] * old[near]).sum(-2) - points[..., None, :], axis=-1)
    turned_away = (_unit(_cross(old))[near] * facing[:, None, None]).sum(-1) < 0.2
    best = (distances + turned_away * np.ptp(whole.vertices, axis=0).max()).argmin(-1)[..., None]
    return np.take_along_axis(near, best, -1)[..., 0], np.take_along_axis(weights, best[..., None], -2)[..., 0, :]


def _on_one_side_of_seams(whole: Mesh, corners: np.ndarray, found: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Texture coordinates (f, 3, 2) of faces whose corners found theirs on different sides of a seam, on one side.

    There all three go on from the old face at the centre, past the seam, as if its texture had no end.

    :param found: (f, 3, 2) what each corner found for itself.
    :param face: (f, 4) old faces at the corners and at the centre; what they span tells what is usual there.
    """
    old = whole.vertices[whole.faces[face]].astype(np.float64)
    weights = _weights_in_plane(corners[:, None], old[:, :, None])  # (f, 4 old faces, 3 corners, 3)
    going_on = np.einsum("fock,fokd->focd", weights, whole.coordinates[face].astype(np.float64))
    usual = np.ptp(going_on, axis=2).max((1, 2))
    torn = np.ptp(found, axis=1).max(1) > SEAM * usual
    return np.where(torn[:, None, None], going_on[:, 3], found)


def _nearest_in_triangle(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(..., 3) barycentric weights of the place in triangles (..., 3, 3) nearest to points (..., 3).

    The projection onto the plane with negative weights cut off: exact above the triangle, close enough beside it.
    """
    found = np.clip(_weights_in_plane(points, triangles), 0.0, None)
    return found / np.maximum(found.sum(-1, keepdims=True), 1e-12)


def _weights_in_plane(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(..., 3) barycentric weights of points (..., 3) projected onto the planes of triangles (..., 3, 3)."""
    a, b, c = triangles[..., 0, :], triangles[..., 1, :], triangles[..., 2, :]
    normal = np.cross(b - a, c - a)
    area = np.maximum((normal**2).sum(-1), 1e-30)
    v = (np.cross(points - a, c - a) * normal).sum(-1) / area
    w = (np.cross(b - a, points - a) * normal).sum(-1) / area
    return np.stack([1.0 - v - w, v, w], -1)


def _cross(corners: np.ndarray) -> np.ndarray:
    """Twice the area vectors of triangles (f, 3, 3)."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


_DIRECTIONS = _unit(np.array([d for d in np.ndindex(3, 3, 3) if d != (1, 1, 1)], dtype=np.float64) - 1.0)
