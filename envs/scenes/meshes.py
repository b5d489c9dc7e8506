"""Real furniture from catalogues of Sweet Home 3D (.sh3f): what a network that saw random objects alone is tried on.

Such a catalogue is a zip archive of OBJ models and a list of properties. Its models have y up, and z forward once the
entry's rotation is applied. (Debian's package sweethome3d-furniture has five, free to use under the licences that it
names; nothing of them is part of this project.)
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import mujoco
import numpy as np

from envs.errors import UserError
from envs.renderers import Renderer
from envs.scenes.object_views import ObjectViews, record_object
from envs.scenes.objects import in_the_dark

CALLED = {"chair": r"^(?!.*wheelchair).*chair", "plane": r"\b(air)?plane\b", "car": r"\bcar\b"}
"""What entries of a category are called, in English."""
LARGEST = 64 << 20
"""Bytes of the largest model that is read."""
_PROPERTIES = "PluginFurnitureCatalog.properties"
_AXES = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""Takes a catalogue's axes (z forward, x to the left, y up) to ours (x forward, y to the left, z up)."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A piece of furniture.

    :param name: that it has in the catalogue, in English.
    :param model: path of its OBJ file in the archive.
    :param rotation: nine numbers, row by row, of the rotation that brings its front to z; empty where it is none.
    """

    name: str
    model: str
    rotation: str


def record_catalogues(
    paths: Sequence[Path], category: str, views: int, pixels: int, seed: int, renderer: Renderer
) -> tuple[ObjectViews, list[str], list[str]]:
    """All pieces of a category in some catalogues, from random places above them.

    :param paths: of the catalogues.
    :param category: of :data:`CALLED`.
    :param views: N of each.
    :param pixels: height and width of the images.
    :param seed: of the views.
    :param renderer: draws them.
    :return: views of the pieces that could be drawn, their models, and a line for each that could not.
    :raises UserError: where a catalogue cannot be read, or none of its pieces be drawn.
    """
    parts, drawn, skipped = [], [], []
    for path in paths:
        with opened(path) as archive:
            for entry in entries(archive, path, category):
                rng = np.random.default_rng([seed, len(drawn) + len(skipped)])
                try:
                    spec = read_object(archive, entry)
                    parts.append(record_object(spec, views, pixels, rng, renderer, entry.model))
                    drawn.append(entry.model)
                except (UserError, ValueError) as error:  # MuJoCo's own errors are ValueErrors
                    skipped.append(f"{entry.model}: {str(error).splitlines()[0]}")
    if not parts:
        reasons = f", {len(skipped)} could not be drawn, the first: {skipped[0]}" if skipped else ""
        raise UserError(f"no {category} to be drawn in {', '.join(map(str, paths))}{reasons}")
    images, masks, poses, intrinsics = zip(*parts, strict=True)
    none = np.zeros((len(parts), 0, 3))
    return ObjectViews(np.stack(images), np.stack(masks), np.stack(poses), intrinsics[0], none), drawn, skipped


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A catalogue's archive.

    :raises UserError: where there is none, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no furniture catalogue (.sh3f): {error}") from None


def entries(archive: zipfile.ZipFile, path: Path, category: str) -> list[CatalogueEntry]:
    """Pieces of a category in a catalogue.

    :raises UserError: where it has no list of its pieces.
    """
    try:
        text = archive.read(_PROPERTIES).decode("latin-1")  # as Java's property files are
    except KeyError:
        raise UserError(f"{path} is no furniture catalogue: it has no {_PROPERTIES}") from None
    pieces: dict[str, dict[str, str]] = {}
    for name, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
        pieces.setdefault(number, {})[name] = value.strip()
    return [
        CatalogueEntry(piece["name"], piece["model"].lstrip("/"), piece.get("modelRotation", ""))
        for piece in pieces.values()
        if "model" in piece and re.search(CALLED[category], piece.get("name", ""), re.IGNORECASE)
    ]


def read_object(archive: zipfile.ZipFile, entry: CatalogueEntry) -> mujoco.MjSpec:
    """A piece on its own in the dark, 2 units long, about the origin, x forward and z up.

    :raises UserError: where trimesh is not installed, the mesh is missing, empty or damaged, or nobody can say which
        way it faces.
    """
    meshes, turn = _read_meshes(archive, entry.model), _AXES @ _rotation(entry.rotation)
    turned = [(vertices @ turn.T, faces, colour) for vertices, faces, colour in meshes]
    low = np.min([vertices.min(0) for vertices, *_ in turned], 0)
    high = np.max([vertices.max(0) for vertices, *_ in turned], 0)
    if not (np.isfinite([low, high]).all() and (high - low).max() > 0):
        raise UserError("its mesh has no size")
    spec = in_the_dark()
    body = spec.worldbody.add_body(name="object")
    for number, (vertices, faces, colour) in enumerate(turned):
        scaled = (vertices - 0.5 * (low + high)) * (2.0 / (high - low).max())
        mesh = spec.add_mesh(name=f"mesh{number}", uservert=scaled.ravel(), userface=faces.ravel())
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # panes have no volume
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=f"mesh{number}", rgba=colour)
    return spec


def _read_meshes(archive: zipfile.ZipFile, model: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Vertices (N, 3), faces (M, 3) and colour (4,) of each material."""
    try:
        import trimesh
        from trimesh.resolvers import ZipResolver
    except ImportError:
        raise UserError("meshes need trimesh: pip install 'kp3d_rl[meshes]'") from None
    folder = str(PurePosixPath(model).parent) + "/"
    try:
        if archive.getinfo(model).file_size > LARGEST:
            raise UserError(f"its mesh has more than {LARGEST >> 20} MiB")
        beside = {
            info.filename.removeprefix(folder): io.BytesIO(archive.read(info))
            for info in archive.infolist()
            if info.filename.startswith(folder) and info.filename.endswith(".mtl") and info.file_size < LARGEST
        }
        content = io.BytesIO(archive.read(model))
        scene: Any = trimesh.load_scene(content, file_type="obj", resolver=ZipResolver(beside), process=False)
    except KeyError:
        raise UserError("its mesh is missing") from None
    except (ValueError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"its mesh is damaged: {str(error).splitlines()[0]}") from None
    found = [
        (np.asarray(part.vertices, float), np.asarray(part.faces, np.int32), _colour(part))
        for part in scene.geometry.values()
        if len(getattr(part, "faces", ())) and len(part.vertices) > 3
    ]
    if not found:
        raise UserError("its mesh is empty")
    return found


def _colour(part: Any) -> np.ndarray:
    """(4,) from 0 to 1, opaque."""
    material = getattr(part.visual, "material", None)
    colour = np.asarray(getattr(material, "main_color", (160, 160, 160, 255)), float) / 255.0
    return np.array([*colour[:3], 1.0])


def _rotation(text: str) -> np.ndarray:
    """(3, 3) as catalogues write it."""
    if not text:
        return np.eye(3)
    try:
        found = np.array([float(value) for value in text.split()]).reshape(3, 3)
    except ValueError:
        found = np.zeros((3, 3))
    if not np.allclose(found @ found.T, np.eye(3), atol=1e-3):
        raise UserError(f"it has no forward axis: its modelRotation '{text[:60]}' is no rotation")
    return found
