"""Lighter meshes for the visual model: fewer faces in place, kept on disk by content.

A compiled MuJoCo model holds each mesh in a frame of its own, which the compiler takes from the mesh's inertia. A mesh
that was simplified before compiling would therefore get another frame, and geoms would have to be moved to match. So
meshes are simplified after compiling, inside the model's own arrays: vertices stay in the frame that they have, arrays
keep their sizes, and a mesh's counts say how much of its part is in use.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from envs.simplify import FACES, SETTINGS, Mesh, simplify

VERSION = 2
"""Part of the cache's keys: raise it where the code makes something else of the same mesh."""
WORKER = "KP3D_RL_WORKER"
"""Environment variable that is set in worker processes: a number that tells those that start together apart."""
_ARRAYS = ("vertices", "faces", "normals", "coordinates")


def decimate_meshes(model: mujoco.MjModel) -> None:
    """Simplify, in place, every mesh of a compiled model that is worth it.

    Geoms, their frames and bounding boxes stay as they are. A mesh that cannot be simplified stays whole, and one line
    on standard error says so.

    :param model: compiled, not simulated with: simplified meshes have no convex hull, and a search tree for
        :func:`mujoco.mj_ray` that still belongs to the whole ones.
    """
    for mesh_id in range(model.nmesh):
        if FACES[0] > 0.5 * model.mesh_facenum[mesh_id]:
            continue
        whole = read_mesh(model, mesh_id)
        try:
            mesh = _cached(whole)
            if len(mesh.faces) < len(whole.faces):
                write_mesh(model, mesh_id, mesh)
        except (ValueError, RuntimeError) as error:
            name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_MESH, mesh_id)
            _say(f"mesh '{name}' of {len(whole.faces)} faces cannot be simplified: {error}; it is drawn as it is")


def read_mesh(model: mujoco.MjModel, mesh_id: int) -> Mesh:
    """A mesh of a compiled model, in its own frame.

    :param model: compiled.
    :param mesh_id: which.
    """
    vertices = _part(model.mesh_vert, model.mesh_vertadr, model.mesh_vertnum, mesh_id)
    normals = _part(model.mesh_normal, model.mesh_normaladr, model.mesh_normalnum, mesh_id)
    corner_normals = _part(model.mesh_facenormal, model.mesh_faceadr, model.mesh_facenum, mesh_id)
    coordinates = np.zeros((0, 3, 2), np.float32)
    if model.mesh_texcoordadr[mesh_id] >= 0:
        known = _part(model.mesh_texcoord, model.mesh_texcoordadr, model.mesh_texcoordnum, mesh_id)
        coordinates = known[_part(model.mesh_facetexcoord, model.mesh_faceadr, model.mesh_facenum, mesh_id)]
    faces = _part(model.mesh_face, model.mesh_faceadr, model.mesh_facenum, mesh_id)
    return Mesh(vertices.copy(), faces.copy(), normals[corner_normals], coordinates)


def write_mesh(model: mujoco.MjModel, mesh_id: int, mesh: Mesh) -> None:
    """Put a smaller mesh in the place of one of a compiled model.

    :param model: compiled; its arrays keep their sizes.
    :param mesh_id: which.
    :param mesh: in the frame of the one that it replaces.
    :raises ValueError: where it has more vertices, faces or corners than there is room for.
    """
    textured = model.mesh_texcoordadr[mesh_id] >= 0
    normals, corner_normals = _fitted(mesh.normals, (0.02, 0.1, 0.3), model.mesh_normalnum[mesh_id])
    coordinates, corner_coordinates = np.zeros((0, 2)), None
    if textured:
        exactness = (1e-4, 1e-3, 3e-3, 1e-2)
        coordinates, corner_coordinates = _fitted(mesh.coordinates, exactness, model.mesh_texcoordnum[mesh_id])
    fields = (
        ("vertices", mesh.vertices, model.mesh_vert, model.mesh_vertadr, model.mesh_vertnum),
        ("faces", mesh.faces, model.mesh_face, model.mesh_faceadr, model.mesh_facenum),
        ("normals", normals, model.mesh_normal, model.mesh_normaladr, model.mesh_normalnum),
        ("texture coordinates", coordinates, model.mesh_texcoord, model.mesh_texcoordadr, model.mesh_texcoordnum),
    )
    for what, values, _, _, room in fields:
        if len(values) > room[mesh_id]:
            raise ValueError(f"{len(values)} {what} do not fit where there were {room[mesh_id]}")
    _clear_mesh(model, mesh_id)
    for _, values, array, address, count in fields:
        count[mesh_id] = len(values)
        if len(values):
            _part(array, address, count, mesh_id)[:] = values
    _part(model.mesh_facenormal, model.mesh_faceadr, model.mesh_facenum, mesh_id)[:] = corner_normals
    if textured:
        _part(model.mesh_facetexcoord, model.mesh_faceadr, model.mesh_facenum, mesh_id)[:] = corner_coordinates


def _clear_mesh(model: mujoco.MjModel, mesh_id: int) -> None:
    """Leave nothing in a model that refers to vertices, normals or texture coordinates that a mesh is about to lose."""
    # Faces that are left over become points: MuJoCo Warp takes all up to the next mesh, whatever their number says.
    for corners in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
        _part(corners, model.mesh_faceadr, model.mesh_facenum, mesh_id)[:] = 0
    # Without a hull: of vertices that are not there, MuJoCo loads none, so that the model could not be sent or saved.
    _part(model.mesh_polymapnum, model.mesh_vertadr, model.mesh_vertnum, mesh_id)[:] = 0
    model.mesh_polynum[mesh_id] = 0
    model.mesh_graphadr[mesh_id] = -1


def cache_folder() -> Path:
    """Where simplified meshes are kept: ``kp3d_rl/meshes`` in the user's cache folder (``XDG_CACHE_HOME``)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kp3d_rl" / "meshes"


def _cached(mesh: Mesh) -> Mesh:
    """The simplified mesh from the cache, or made and put there."""
    path = cache_folder() / f"{_key(mesh)}.npz"
    found = _load(path, mesh)
    if found is None:
        found = simplify(mesh)
        _save(path, found)
    return found


def _key(mesh: Mesh) -> str:
    made_by = f"{VERSION} {SETTINGS} {importlib.metadata.version('fast-simplification')}"
    digest = hashlib.blake2b(made_by.encode(), digest_size=16)
    for name in _ARRAYS:
        values = np.ascontiguousarray(getattr(mesh, name))
        digest.update(f"{name} {values.shape} {values.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _load(path: Path, whole: Mesh) -> Mesh | None:
    """What the cache has; None where it has nothing, or nothing that can be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mesh = Mesh(*(file[name] for name in _ARRAYS))
        return mesh if _is_sound(mesh, whole) else None
    except Exception:  # a damaged file makes numpy and zipfile raise errors of all kinds; each means to make it anew
        return None


def _is_sound(mesh: Mesh, whole: Mesh) -> bool:
    """Whether what was read is a mesh that may stand for the whole one."""
    count = len(mesh.faces)
    textured = len(whole.coordinates) > 0
    shapes = ((len(mesh.vertices), 3), (count, 3), (count, 3, 3), (count if textured else 0, 3, 2))
    types = (np.float32, np.int32, np.float32, np.float32)
    arrays = [getattr(mesh, name) for name in _ARRAYS]
    if any(a.shape != s or a.dtype != t for a, s, t in zip(arrays, shapes, types, strict=True)) or count < 4:
        return False
    return bool(mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices) and count <= len(whole.faces))


def _save(path: Path, mesh: Mesh) -> None:
    """Write beside the place and rename: whoever reads sees all of it or nothing, however many write at once."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **{name: getattr(mesh, name) for name in _ARRAYS})
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        _say(
            f"simplified meshes cannot be kept in {path.parent} ({error.strerror}), so every start makes them anew; "
            "set XDG_CACHE_HOME to a folder that can be written to"
        )


_said: set[str] = set()


def _say(line: str) -> None:
    """Warn once, however many meshes, environments and worker processes there are.

    Of workers that start together only the one whose number is 0 speaks; main processes have no number.
    """
    if line not in _said and os.environ.get(WORKER, "0") == "0":
        _said.add(line)
        print(f"warning: {line}", file=sys.stderr)


def _part(values: np.ndarray, addresses: np.ndarray, counts: np.ndarray, mesh_id: int) -> np.ndarray:
    """The rows of a model's array that belong to one mesh; writing to them writes to the model."""
    start = int(addresses[mesh_id])
    return values[start : start + int(counts[mesh_id])]


def _fitted(values: np.ndarray, distances: Sequence[float], room: int) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`_shared` gives for the first distance by which there is room for it, or else for the last."""
    for distance in distances:
        found = _shared(values, distance)
        if len(found[0]) <= room:
            break
    return found


def _shared(values: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners' attributes (f, 3, d) as a list (n, d) without doubles closer than ``distance``, and indices (f, 3)."""
    rows = values.reshape(-1, values.shape[-1])
    _, first, index = np.unique(np.round(rows / distance), axis=0, return_index=True, return_inverse=True)
    return rows[first].copy(), index.reshape(values.shape[:2]).astype(np.int32)
