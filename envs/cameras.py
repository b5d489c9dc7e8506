"""Cameras as data: specifications, the rig read back from a compiled model, the workspace box, and their YAML files.

Conventions, for the whole project: OpenCV camera axes (x right, y down, z forward), metres, poses
``world_from_camera`` (4, 4), pixel intrinsics (3, 3) with row 0 at the top and pixel centres at half-integers (so
``cx = width / 2``). MuJoCo's cameras look along -z with y up; :func:`read_poses` is the one place where they are
converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import yaml

from envs.errors import UserError, unknown

FOLLOW_MODES = ("rigid", "track")
_OPENCV_FROM_MUJOCO = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class CameraSpec:
    """One camera, fixed in the world or mounted on a body.

    :param name: unique within a rig.
    :param position: (3,) metres; in the world, or relative to ``body``.
    :param look_at: (3,) point that the camera looks at, in the frame of ``position``. Give this or ``quaternion``.
    :param quaternion: (4,) w, x, y, z rotation of the MuJoCo camera frame (looks along -z, y up).
    :param up: (3,) direction that points up in the image, used with ``look_at``.
    :param fovy: vertical field of view, degrees.
    :param body: name of the body that the camera is mounted on; None is the world.
    :param follow: "rigid": position and orientation are in the body's frame and turn with it. "track": the camera's
        position keeps its offset to the body along the world's axes, and its orientation stays fixed in the world.
    """

    name: str
    position: tuple[float, float, float]
    look_at: tuple[float, float, float] | None = None
    quaternion: tuple[float, float, float, float] | None = None
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    fovy: float = 45.0
    body: str | None = None
    follow: str = "rigid"

    def __post_init__(self) -> None:
        for name, length in (("position", 3), ("look_at", 3), ("quaternion", 4), ("up", 3)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _numbers(value, length, f"camera '{self.name}': {name}"))
        if (self.look_at is None) == (self.quaternion is None):
            raise UserError(f"camera '{self.name}': give either look_at or quaternion (exactly one of them)")
        if self.follow not in FOLLOW_MODES:
            raise UserError(f"camera '{self.name}': {unknown('follow mode', self.follow, FOLLOW_MODES)}")
        if not isinstance(self.fovy, (int, float)) or not 0.0 < self.fovy < 180.0:
            raise UserError(f"camera '{self.name}': fovy is {self.fovy!r}; it must be a number of degrees in (0, 180)")

    @property
    def mujoco_quaternion(self) -> np.ndarray:
        """(4,) w, x, y, z rotation of the MuJoCo camera frame, in the frame of ``position``."""
        if self.quaternion is not None:
            quaternion = np.asarray(self.quaternion)
            norm = np.linalg.norm(quaternion)
            if norm < 1e-8:
                raise UserError(f"camera '{self.name}': quaternion is zero")
            return quaternion / norm
        return _look_at_quaternion(self.name, np.array(self.position), np.array(self.look_at), np.array(self.up))


@dataclass(frozen=True)
class WorkspaceSpec:
    """The box in which the task happens, and the frame in which everything about it is told.

    :param centre: (3,) metres, in the workspace frame.
    :param half_extents: (3,) metres, all positive.
    :param body: None: the workspace frame is the world. A body's name: the world moved so that this body's position is
        the origin (translation only), at every instant; camera poses and body positions are told relative to it.
    """

    centre: tuple[float, float, float]
    half_extents: tuple[float, float, float]
    body: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", _numbers(self.centre, 3, "workspace: centre"))
        object.__setattr__(self, "half_extents", _numbers(self.half_extents, 3, "workspace: half_extents"))
        if min(self.half_extents) <= 0.0:
            raise UserError(f"workspace: half_extents are {self.half_extents}; all must be positive")

    def normalise(self, points: np.ndarray) -> np.ndarray:
        """Map points (..., 3) of the workspace frame, in metres, to [-1, 1] inside the box."""
        return (np.asarray(points) - self.centre) / self.half_extents

    def corners(self) -> np.ndarray:
        """(8, 3) corners of the box, workspace frame, metres."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
        return np.asarray(self.centre) + signs * self.half_extents


@dataclass(frozen=True)
class CameraRig:
    """V synchronized cameras as they stand in a compiled model, in OpenCV axes.

    :param names: V camera names.
    :param intrinsics: (V, 3, 3) float64, pixels.
    :param world_from_camera: (V, 4, 4) float64, workspace frame, metres.
    :param height: image height, pixels.
    :param width: image width, pixels.
    :param moving: whether the poses change in the workspace frame; if so these are the poses of one instant.
    """

    names: tuple[str, ...]
    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    height: int
    width: int
    moving: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for YAML and JSON; :meth:`from_dict` reads them back exactly."""
        return {
            "names": list(self.names),
            "intrinsics": self.intrinsics.tolist(),
            "world_from_camera": self.world_from_camera.tolist(),
            "height": self.height,
            "width": self.width,
            "moving": self.moving,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CameraRig:
        """Read what :meth:`to_dict` wrote.

        :raises UserError: if an entry is missing or unknown, or an array has the wrong shape.
        """
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                raise unknown("rig entry", key, names)
        missing = [name for name in names if name not in values]
        if missing:
            raise UserError(f"rig: entry '{missing[0]}' is missing; a rig has {', '.join(names)}")
        views = len(values["names"])
        arrays = {}
        for key, shape in (("intrinsics", (views, 3, 3)), ("world_from_camera", (views, 4, 4))):
            arrays[key] = np.asarray(values[key], dtype=np.float64)
            if arrays[key].shape != shape:
                raise UserError(f"rig: {key} has shape {arrays[key].shape}; {views} cameras need {shape}")
        return cls(
            names=tuple(values["names"]),
            height=int(values["height"]),
            width=int(values["width"]),
            moving=bool(values["moving"]),
            **arrays,
        )


def read_rig(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera_ids: Sequence[int],
    names: Sequence[str],
    height: int,
    width: int,
    *,
    origin: np.ndarray | None = None,
    moving: bool = False,
) -> CameraRig:
    """Read cameras from a compiled model and its current kinematics.

    :param model: compiled model that holds the cameras.
    :param data: its data, after ``mj_camlight``.
    :param camera_ids: V ids of cameras in ``model``.
    :param names: V names that the rig gives them.
    :param height: image height, pixels.
    :param width: image width, pixels.
    :param origin: (3,) world position that becomes the origin of the poses; None is the world's.
    :param moving: stored in the rig.
    :raises UserError: for a camera that is defined by sensor size and principal point or is orthographic: only
        perspective cameras defined by a vertical field of view are supported, because the sign of the principal point
        differs between MuJoCo versions.
    """
    ids = np.asarray(camera_ids, dtype=int)
    intrinsics = np.stack([_intrinsics(model, int(camera), height, width) for camera in ids])
    return CameraRig(tuple(names), intrinsics, read_poses(data, ids, origin), height, width, moving)


def read_poses(data: mujoco.MjData, camera_ids: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
    """Poses of cameras at this instant.

    :return: (V, 4, 4) float64 ``world_from_camera``, OpenCV axes, relative to ``origin`` (translation only).
    """
    poses = np.zeros((len(camera_ids), 4, 4))
    poses[:, :3, :3] = data.cam_xmat[camera_ids].reshape(-1, 3, 3) @ _OPENCV_FROM_MUJOCO
    poses[:, :3, 3] = data.cam_xpos[camera_ids]
    if origin is not None:
        poses[:, :3, 3] -= origin
    poses[:, 3, 3] = 1.0
    return poses


def load_cameras(path: str | Path) -> tuple[list[CameraSpec], WorkspaceSpec | None]:
    """Read a cameras file.

    The file is YAML: ``cameras``, a list of entries with the fields of :class:`CameraSpec`, and optionally
    ``workspace`` with the fields of :class:`WorkspaceSpec`.

    :raises UserError: naming the file, the entry and the key that is wrong.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cameras file {path}: cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cameras file {path}: is not YAML ({' '.join(str(error).split())})") from error
    try:
        return _parse_cameras(content)
    except UserError as error:
        raise UserError(f"cameras file {path}: {error}") from error


def save_cameras(path: str | Path, cameras: Sequence[CameraSpec], workspace: WorkspaceSpec | None = None) -> None:
    """Write a cameras file that :func:`load_cameras` reads back to equal specifications."""
    content: dict[str, Any] = {"cameras": [_plain(camera) for camera in cameras]}
    if workspace is not None:
        content["workspace"] = _plain(workspace)
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))


def check_unique(cameras: Sequence[CameraSpec]) -> None:
    """:raises UserError: if there is no camera, or two have one name."""
    if not cameras:
        raise UserError("no cameras: at least one is needed")
    names = [camera.name for camera in cameras]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two cameras are named '{name}'; names must differ")


def _parse_cameras(content: Any) -> tuple[list[CameraSpec], WorkspaceSpec | None]:
    if not isinstance(content, dict):
        raise UserError("must hold the keys 'cameras' and, optionally, 'workspace'")
    for key in content:
        if key not in ("cameras", "workspace"):
            raise unknown("key", key, ("cameras", "workspace"))
    entries = content.get("cameras")
    if not isinstance(entries, list):
        raise UserError("'cameras' must be a list of cameras")
    cameras = [_build(CameraSpec, entry, f"camera {index + 1}") for index, entry in enumerate(entries)]
    check_unique(cameras)
    workspace = content.get("workspace")
    return cameras, None if workspace is None else _build(WorkspaceSpec, workspace, "workspace")


def _build(cls: type, entry: Any, where: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be a mapping with the keys {', '.join(f.name for f in fields(cls))}")
    valid = [field.name for field in fields(cls)]
    for key in entry:
        if key not in valid:
            raise UserError(f"{where}: {unknown('key', key, valid)}")
    try:
        return cls(**entry)
    except TypeError as error:
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in entry]
        raise UserError(f"{where}: key '{missing[0]}' is missing" if missing else f"{where}: {error}") from error


def _plain(spec: Any) -> dict[str, Any]:
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


def _numbers(value: Any, length: int, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != length or not np.all(np.isfinite(numbers)):
        raise UserError(f"{what} is {value!r}; it must be {length} finite numbers")
    return numbers


def _intrinsics(model: mujoco.MjModel, camera: int, height: int, width: int) -> np.ndarray:
    name = model.camera(camera).name
    if np.any(model.cam_sensorsize[camera] > 0):
        raise UserError(f"camera '{name}': defined by sensorsize and principal point; define it by fovy instead")
    if model.cam_projection[camera] != mujoco.mjtProjection.mjPROJ_PERSPECTIVE:
        raise UserError(f"camera '{name}': is orthographic; only perspective cameras are supported")
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(model.cam_fovy[camera]))
    return np.array([[focal, 0.0, 0.5 * width], [0.0, focal, 0.5 * height], [0.0, 0.0, 1.0]])


def _look_at_quaternion(name: str, position: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    backward = position - target
    right = np.cross(up, backward)
    if np.linalg.norm(backward) < 1e-8 or np.linalg.norm(right) < 1e-8 * np.linalg.norm(backward):
        raise UserError(f"camera '{name}': looks along its up direction or at its own position; change look_at or up")
    backward = backward / np.linalg.norm(backward)
    right = right / np.linalg.norm(right)
    axes = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, axes.ravel())
    return quaternion
