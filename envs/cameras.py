"""Cameras as data: specifications, the rig read back from a compiled model, the workspace box, and their YAML files.

Conventions, for the whole project: OpenCV camera axes (x right, y down, z forward), metres, poses
``world_from_camera`` (4, 4), pixel intrinsics (3, 3) with row 0 at the top and pixel centres at half-integers (so
``cx = width / 2``). MuJoCo's cameras look along -z with y up; :func:`read_poses` is the one place where they are
converted.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import yaml

from envs.errors import UserError, unknown
from envs.yaml_files import Key, YamlTree, read_yaml, shown, unknown_key

FOLLOW_MODES = ("rigid", "track")
MAX_CAMERAS = 64
MAX_DISTANCE = 1e4
"""Metres from the origin; also the largest component of directions and quaternions."""
MAX_IMAGE_SIDE = 4096
LEAST_FOVY, MOST_FOVY = 0.1, 179.0  # degrees: beyond, focal lengths lose their digits
_MAX_FOCAL = 1e7  # pixels: that of the least field of view in the largest image, and some
_FILE_LIMIT = 100_000  # bytes
_LONGEST_NAME = 256
_LEAST_EXTENT = 1e-6  # metres: positions are divided by it
_OPENCV_FROM_MUJOCO = np.diag([1.0, -1.0, -1.0])


class _FieldError(UserError):
    """What is wrong with one field of a specification; the reader of a file adds the line."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


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
        _require_name(self.name, "name", "camera: name")
        where = f"camera '{self.name}'"
        for name, length in (("position", 3), ("look_at", 3), ("quaternion", 4), ("up", 3)):
            value = getattr(self, name)
            if value is not None or name in ("position", "up"):
                object.__setattr__(self, name, _numbers(value, length, name, f"{where}: {name}"))
        if (self.look_at is None) == (self.quaternion is None):
            problem = f"{where}: give either look_at or quaternion (exactly one of them)"
            raise _FieldError(problem, "position" if self.look_at is None else "look_at")
        if self.body is not None:
            _require_name(self.body, "body", f"{where}: body")
        if not isinstance(self.follow, str) or self.follow not in FOLLOW_MODES:
            raise _FieldError(f"{where}: {unknown('follow mode', _bare(self.follow), FOLLOW_MODES)}", "follow")
        if not _is_number(self.fovy) or not LEAST_FOVY <= self.fovy <= MOST_FOVY:
            problem = f"it must be a number of degrees from {LEAST_FOVY:g} to {MOST_FOVY:g}"
            raise _FieldError(f"{where}: fovy is {shown(self.fovy)}; {problem}", "fovy")

    @property
    def mujoco_quaternion(self) -> np.ndarray:
        """(4,) w, x, y, z rotation of the MuJoCo camera frame, in the frame of ``position``."""
        if self.quaternion is not None:
            quaternion = np.asarray(self.quaternion)
            norm = np.linalg.norm(quaternion)
            if norm < 1e-8:
                raise _FieldError(f"camera '{self.name}': quaternion is zero", "quaternion")
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
        for name in ("centre", "half_extents"):
            object.__setattr__(self, name, _numbers(getattr(self, name), 3, name, f"workspace: {name}"))
        if min(self.half_extents) < _LEAST_EXTENT:
            problem = f"all must be positive, at least {_LEAST_EXTENT:g}"
            raise _FieldError(f"workspace: half_extents are {self.half_extents}; {problem}", "half_extents")
        if self.body is not None:
            _require_name(self.body, "body", "workspace: body")

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

        :param values: plain values, whoever wrote them.
        :raises UserError: if an entry is missing, unknown, or not what a rig can have; one line says what is wrong.
        """
        names = [field.name for field in fields(cls)]
        require_entries(values, names, "rig")
        views = _check_names(values["names"])
        intrinsics = _array(values["intrinsics"], (views, 3, 3), "intrinsics")
        poses = _array(values["world_from_camera"], (views, 4, 4), "world_from_camera")
        _check_intrinsics(intrinsics)
        _check_rigid(poses)
        for side in ("height", "width"):
            if type(values[side]) is not int or not 1 <= values[side] <= MAX_IMAGE_SIDE:
                wanted = f"it must be a whole number of pixels from 1 to {MAX_IMAGE_SIDE}"
                raise UserError(f"rig: {side} is {shown(values[side])}; {wanted}")
        if not isinstance(values["moving"], bool):
            raise UserError(f"rig: moving is {shown(values['moving'])}; it must be true or false")
        return cls(tuple(values["names"]), intrinsics, poses, values["height"], values["width"], values["moving"])


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
    try:
        tree = read_yaml(path, _FILE_LIMIT)
        return _parse_cameras(tree)
    except UserError as error:
        raise UserError(f"cameras file {error}") from None


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


def require_entries(values: Any, names: Sequence[str], what: str) -> None:
    """Refuse what is not a mapping with exactly these entries.

    :param values: what was read from a file.
    :param names: of the entries.
    :param what: what it is called in messages.
    :raises UserError: naming the first entry that is unknown or missing.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{what}: must be a mapping with the entries {', '.join(names)}, got {shown(values)}")
    for key in values:
        if key not in names:
            raise unknown(f"{what} entry", _bare(key), names)
    for name in names:
        if name not in values:
            raise UserError(f"{what}: entry '{name}' is missing; it has {', '.join(names)}")


def _parse_cameras(tree: YamlTree) -> tuple[list[CameraSpec], WorkspaceSpec | None]:
    content = tree.data
    if not isinstance(content, dict):
        raise tree.refusal((), "must hold the keys 'cameras' and, optionally, 'workspace'")
    for key in content:
        if key not in ("cameras", "workspace"):
            raise unknown_key(tree, (key,), ("cameras", "workspace"))
    entries = content.get("cameras")
    if not isinstance(entries, list):
        raise tree.refusal(("cameras",), "'cameras' must be a list of cameras")
    if len(entries) > MAX_CAMERAS:
        raise tree.refusal(("cameras",), f"{len(entries)} cameras are too many: at most {MAX_CAMERAS}")
    cameras = [_build(CameraSpec, tree, entry, ("cameras", index)) for index, entry in enumerate(entries)]
    try:
        check_unique(cameras)
    except UserError as error:
        raise tree.refusal(("cameras",), str(error)) from None
    workspace = content.get("workspace")
    return cameras, None if workspace is None else _build(WorkspaceSpec, tree, workspace, ("workspace",))


def _build(cls: type, tree: YamlTree, entry: Any, key: Key) -> Any:
    """A specification of a mapping in a file; every refusal names the line and the key."""
    valid = [field.name for field in fields(cls)]
    if not isinstance(entry, dict):
        raise tree.refusal(key, f"must be a mapping with the keys {', '.join(valid)}, got {shown(entry)}")
    for name in entry:
        if name not in valid:
            raise unknown_key(tree, (*key, name), valid)
    for field in fields(cls):
        if field.default is MISSING and field.name not in entry:
            raise tree.refusal((*key, field.name), "is missing")
    try:
        spec = cls(**entry)
        if isinstance(spec, CameraSpec):
            spec.mujoco_quaternion  # noqa: B018  (refuses what has no direction)
    except _FieldError as error:
        raise tree.refusal((*key, error.field), str(error)) from None
    return spec


def _plain(spec: Any) -> dict[str, Any]:
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _bare(value: Any) -> str:
    """A faulty value for a message that puts it in quotes."""
    return shown(value)[1:-1] if isinstance(value, str) else shown(value)


def _require_name(value: Any, field: str, what: str) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_NAME or not value.isprintable():
        problem = f"it must be text of 1 to {_LONGEST_NAME} printable characters"
        raise _FieldError(f"{what} is {shown(value)}; {problem}", field)


def _numbers(value: Any, length: int, field: str, what: str) -> tuple[float, ...]:
    """The numbers of a vector, as floats.

    :param field: that the vector is, for the error.
    """
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == length and all(map(_is_number, value)):
        if all(abs(number) <= MAX_DISTANCE for number in value):  # not of NaN
            return tuple(map(float, value))
    problem = f"it must be {length} finite numbers, none beyond {MAX_DISTANCE:g}"
    raise _FieldError(f"{what} is {shown(value)}; {problem}", field)


def _check_names(names: Any) -> int:
    """How many names a rig has; they must be different."""
    if not isinstance(names, (list, tuple)) or not 1 <= len(names) <= MAX_CAMERAS:
        raise UserError(f"rig: names are {shown(names)}; they must be a list of 1 to {MAX_CAMERAS} names")
    for name in names:
        _require_name(name, "names", "rig: a name")
        if names.count(name) > 1:
            raise UserError(f"rig: two cameras are named '{name}'; names must differ")
    return len(names)


def _array(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Nested lists of finite numbers as an array; NumPy alone would take text and truth for numbers."""

    def flat(part: Any, lengths: tuple[int, ...]) -> list[float]:
        if not lengths:
            if not _is_number(part) or not abs(part) <= _MAX_FOCAL:
                raise UserError(f"rig: {what} holds {shown(part)}; it must hold numbers, none beyond {_MAX_FOCAL:g}")
            return [float(part)]
        if not isinstance(part, (list, tuple)) or len(part) != lengths[0]:
            raise UserError(f"rig: {what} has another shape; {shape[0]} cameras need {shape}")
        return [number for entry in part for number in flat(entry, lengths[1:])]

    return np.array(flat(values, shape), dtype=np.float64).reshape(shape)


def _check_intrinsics(intrinsics: np.ndarray) -> None:
    lenses = intrinsics.copy()
    lenses[:, [0, 1, 0, 1], [0, 1, 2, 2]] = 0.0
    focal = intrinsics[:, [0, 1], [0, 1]]
    if np.abs(lenses - np.diag([0.0, 0.0, 1.0])).max() > 1e-6 or not np.all(focal > 0):
        raise UserError("rig: intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, with fx, fy above 0")


def _check_rigid(poses: np.ndarray) -> None:
    rotations = poses[:, :3, :3]
    off = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max()
    if off > 1e-4 or np.any(np.linalg.det(rotations) < 0) or np.any(poses[:, 3] != [0.0, 0.0, 0.0, 1.0]):
        raise UserError("rig: world_from_camera must be rigid poses [[R, t], [0, 0, 0, 1]] with R a rotation")
    if np.abs(poses[:, :3, 3]).max() > MAX_DISTANCE:
        raise UserError(f"rig: world_from_camera has a camera more than {MAX_DISTANCE:g} m from the origin")


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
        problem = "looks along its up direction or at its own position; change look_at or up"
        raise _FieldError(f"camera '{name}': {problem}", "look_at")
    backward = backward / np.linalg.norm(backward)
    right = right / np.linalg.norm(right)
    axes = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, axes.ravel())
    return quaternion
