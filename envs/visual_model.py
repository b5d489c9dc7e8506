"""The model that is looked at: same bodies and joints as the physics model, with our cameras, and light to draw.

The task's own physics model is never touched. The visual model is compiled from the same MJCF; per observation the
state is copied into it and kinematics, cameras and lights run on its own data. So what is seen is always what the state
says, also right after a reset, and an episode goes the same way whether it is rendered or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from envs.cameras import CameraRig, CameraSpec, WorkspaceSpec, check_unique, read_poses, read_rig
from envs.decimation import decimate_meshes
from envs.errors import UserError, unknown
from envs.shapes import BodyShape

QUALITIES = ("light", "full")

_CAMERA_PREFIX = "view/"  # keeps our cameras apart from those that the task's model has
# What a task may change in its model after loading and that shows: copied with every state. (A mesh geom's frame
# depends on its mesh; both models have the same one, since meshes are simplified after compiling.)
_COPIED_FIELDS = (
    "qpos0",
    "body_pos",
    "body_quat",
    "jnt_pos",
    "jnt_axis",
    "geom_pos",
    "geom_quat",
    "geom_size",
    "geom_rbound",
    "geom_aabb",
    "geom_rgba",
    "geom_matid",
    "mat_rgba",
    "site_pos",
    "site_quat",
    "site_size",
    "site_rgba",
    "light_pos",
    "light_dir",
    "light_active",
    "light_ambient",
    "light_diffuse",
    "light_specular",
)
_OUT_OF_SIGHT = 1e4  # metres
_CAMERA_FIELDS = ("cam_pos", "cam_quat", "cam_pos0", "cam_mat0")


@dataclass(frozen=True)
class MarkerSpec:
    """A ball that shows where something is wanted; only the eye knows of it, physics does not.

    :param name: of the body that it becomes in the visual model; no body of the task may have it.
    :param radius: metres.
    :param rgba: colour.
    """

    name: str
    radius: float = 0.02
    rgba: tuple[float, float, float, float] = (0.85, 0.05, 0.85, 1.0)


class VisualModel:
    """A model with V cameras, and data that follows a physics simulation.

    Attributes: ``model``, ``data``, ``quality``, ``cameras`` (the specifications), ``camera_ids`` (V,) in ``model``,
    ``movable_geoms`` (ids of geoms that are no background), ``key`` (equal for visual models that look the same).
    """

    def __init__(
        self,
        path: str | mujoco.MjSpec,
        physics: mujoco.MjModel,
        cameras: Sequence[CameraSpec],
        *,
        workspace: WorkspaceSpec | None = None,
        movable: Sequence[str] = (),
        markers: Sequence[MarkerSpec] | None = None,
        quality: str = "light",
    ) -> None:
        """Compile the visual model; nothing is rendered yet.

        :param path: the MJCF from which ``physics`` was loaded, or the specification that it was compiled from.
        :param physics: the task's model.
        :param cameras: the views, in the order of the images.
        :param workspace: tells the frame of poses and positions; None is the world.
        :param movable: names of bodies that are no background although they have no joint, such as targets.
        :param markers: what is drawn in place of the model's sites; their places are told to :meth:`sync`. None: the
            sites themselves, which only OpenGL draws.
        :param quality: "light", simplified meshes and no multisampling, shadows or reflections, which cost far more
            than they show at the sizes of training images; or "full", as the task's file says.
        :raises UserError: for unknown bodies, or where the MJCF does not compile to the physics model.
        """
        check_unique(cameras)
        if quality not in QUALITIES:
            raise unknown("render quality", quality, QUALITIES)
        self.cameras, self.quality = tuple(cameras), quality
        self.markers, self.draws_sites = tuple(markers or ()), markers is None
        self.model = self._compile(path, physics)
        self.data = mujoco.MjData(self.model)
        self._marker_mocaps = [self.model.body(marker.name).mocapid[0] for marker in self.markers]
        self.camera_ids = np.array([self.model.camera(_CAMERA_PREFIX + camera.name).id for camera in cameras])
        self._placed = {name: getattr(self.model, name).copy() for name in _CAMERA_FIELDS}
        self._origin_body = None
        if workspace is not None and workspace.body is not None:
            self._origin_body = self.body_id(workspace.body, "the workspace's body")
        movable_bodies = self._movable_bodies(movable)
        self.movable_geoms = np.flatnonzero(movable_bodies[self.model.geom_bodyid])
        self.movable_sites = np.flatnonzero(movable_bodies[self.model.site_bodyid])
        self.background_only = False
        buffer = np.empty(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, buffer)
        self.key = hashlib.blake2b(buffer.tobytes() + bytes([self.draws_sites]), digest_size=16).hexdigest()
        self.sync(physics, mujoco.MjData(physics))

    def sync(self, physics: mujoco.MjModel, data: mujoco.MjData, markers: np.ndarray | float = 0.0) -> None:
        """Take over the state of a simulation, and what the task changed in its model, and compute where all is.

        :param physics: the task's model; read only.
        :param data: its data; only qpos and the mocap poses are read.
        :param markers: (M, 3) where the markers are, world metres.
        """
        for name in _COPIED_FIELDS:  # markers are behind all that the task has
            theirs = getattr(physics, name)
            np.copyto(getattr(self.model, name)[: len(theirs)], theirs)
        np.copyto(self.data.qpos, data.qpos)
        np.copyto(self.data.mocap_pos[: physics.nmocap], data.mocap_pos)
        np.copyto(self.data.mocap_quat[: physics.nmocap], data.mocap_quat)
        if self.markers:
            self.data.mocap_pos[self._marker_mocaps] = markers
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        if self.model.nflex:
            mujoco.mj_flex(self.model, self.data)
        if self.model.ntendon:
            mujoco.mj_tendon(self.model, self.data)

    @property
    def origin(self) -> np.ndarray:
        """(3,) world position of the workspace frame's origin at the synced instant."""
        return np.zeros(3) if self._origin_body is None else self.data.xpos[self._origin_body].copy()

    @property
    def moves_in_workspace(self) -> bool:
        """Whether any camera's pose in the workspace frame changes over time."""
        return any(self._moves(camera) for camera in self.cameras)

    @property
    def moves_in_world(self) -> bool:
        """Whether any camera moves through the world (then there is no fixed background)."""
        return any(camera.body is not None and self._body_moves(camera.body) for camera in self.cameras)

    def rig(self, height: int, width: int) -> CameraRig:
        """The cameras at the synced instant, in the workspace frame, for images of (height, width) pixels."""
        names = [camera.name for camera in self.cameras]
        moving = self.moves_in_workspace
        return read_rig(self.model, self.data, self.camera_ids, names, height, width, origin=self.origin, moving=moving)

    def poses(self) -> np.ndarray:
        """(V, 4, 4) ``world_from_camera`` at the synced instant, workspace frame."""
        return read_poses(self.data, self.camera_ids, self.origin)

    def body_positions(self, names: Sequence[str]) -> np.ndarray:
        """(B, 3) positions of named bodies at the synced instant, workspace frame, metres."""
        return self.data.xpos[[self.body_id(name) for name in names]] - self.origin

    def body_poses(self, names: Sequence[str]) -> np.ndarray:
        """(B, 4, 4) from the frames of named bodies to the workspace frame at the synced instant, metres."""
        bodies = [self.body_id(name) for name in names]
        poses = np.tile(np.eye(4), (len(bodies), 1, 1))
        poses[:, :3, :3] = self.data.xmat[bodies].reshape(-1, 3, 3)
        poses[:, :3, 3] = self.data.xpos[bodies] - self.origin
        return poses

    def body_shapes(self, names: Sequence[str]) -> tuple[BodyShape, ...]:
        """What is seen of named bodies."""
        return tuple(BodyShape.of(self.model, self.body_id(name)) for name in names)

    def body_id(self, name: str, what: str = "body") -> int:
        """:raises UserError: if no body has this name."""
        body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name)
        if body < 0:
            raise unknown(what, name, body_names(self.model))
        return body

    def move_camera(self, view: int, offset: np.ndarray, turn: np.ndarray) -> None:
        """Put a camera beside the place where it was made; from the next sync on it shows.

        :param view: index of the camera.
        :param offset: (3,) metres, in the frame that it is mounted on; with ``turn`` 0 puts it back.
        :param turn: (3,) axis times angle, radians, in the same frame.
        """
        camera = int(self.camera_ids[view])
        for name, values in self._placed.items():
            np.copyto(getattr(self.model, name), values)
        rotation, turned = np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(rotation, np.asarray(turn, float) / (np.linalg.norm(turn) or 1), np.linalg.norm(turn))
        mujoco.mju_mulQuat(turned, rotation, self.model.cam_quat[camera])
        matrix, mode = np.empty(9), self.model.cam_mode[camera]
        mujoco.mju_quat2Mat(matrix, rotation)
        self.model.cam_quat[camera] = turned
        self.model.cam_pos[camera] += offset
        if mode == mujoco.mjtCamLight.mjCAMLIGHT_TRACK:  # reads these, which are along world axes
            self.model.cam_pos0[camera] += offset
            self.model.cam_mat0[camera] = (matrix.reshape(3, 3) @ self.model.cam_mat0[camera].reshape(3, 3)).ravel()

    @contextlib.contextmanager
    def only_background(self) -> Iterator[None]:
        """Inside this context everything that can move is invisible to every renderer."""
        geom_rgba, site_rgba = self.model.geom_rgba.copy(), self.model.site_rgba.copy()
        points = self.data.flexvert_xpos.copy()
        self.data.flexvert_xpos[:] += _OUT_OF_SIGHT  # the ray tracer knows no flex that is invisible
        self.model.geom_rgba[self.movable_geoms] = 0.0
        self.model.site_rgba[self.movable_sites] = 0.0
        self.background_only = True
        try:
            yield
        finally:
            self.background_only = False
            np.copyto(self.data.flexvert_xpos, points)
            np.copyto(self.model.geom_rgba, geom_rgba)
            np.copyto(self.model.site_rgba, site_rgba)

    def _compile(self, path: str | mujoco.MjSpec, physics: mujoco.MjModel) -> mujoco.MjModel:
        try:
            spec = mujoco.MjSpec.from_file(path) if isinstance(path, str) else path.copy()
            plain = _compiled(spec)
        except ValueError as error:
            raise UserError(f"model file {path}: does not compile ({' '.join(str(error).split())})") from error
        sizes = ("nq", "nbody", "njnt", "ngeom", "nsite", "nmocap", "nmat", "nlight")
        for size in sizes:
            if getattr(plain, size) != getattr(physics, size):
                raise UserError(
                    f"model file {path}: {size} is {getattr(plain, size)}, but {getattr(physics, size)} in the "
                    "environment's model; the file must be the one from which the environment was loaded"
                )
        _name_bodies(spec)
        for camera in self.cameras:
            _add_camera(spec, plain, camera)
        for marker in self.markers:
            _add_marker(spec, plain, marker)
        _strip_dynamics(spec)
        model = _compiled(spec)
        model.geom_contype[:] = 0  # nothing collides here
        model.geom_conaffinity[:] = 0
        model.geom_margin[:] = 0
        if self.quality == "light":
            _lighten(model)
        return model

    def _movable_bodies(self, named: Sequence[str]) -> np.ndarray:
        """(nbody,) bool: bodies that can move, or that the task names as movable, and all that hangs on them."""
        movable = (self.model.body_jntnum > 0) | (self.model.body_mocapid >= 0)
        movable[[self.body_id(name, "movable body") for name in named]] = True
        return with_children(self.model, movable)

    def _body_moves(self, name: str) -> bool:
        return bool(self._movable_bodies(())[self.body_id(name)])

    def _moves(self, camera: CameraSpec) -> bool:
        frame_moves = self._origin_body is not None and bool(self._movable_bodies(())[self._origin_body])
        if camera.body is None or not self._body_moves(camera.body):
            return frame_moves
        tracks_frame = self.body_id(camera.body) == self._origin_body and camera.follow == "track"
        return not tracks_frame


def with_children(model: mujoco.MjModel, bodies: np.ndarray) -> np.ndarray:
    """(nbody,) bool: the bodies that are marked in ``bodies`` (nbody,), and all that hangs on them."""
    found = bodies.copy()
    for body in range(1, model.nbody):  # parents come before children
        found[body] |= found[model.body_parentid[body]]
    return found


def body_names(model: mujoco.MjModel) -> list[str]:
    """Names of all named bodies, the world left out; in a visual model all have one."""
    names = [model.body(index).name for index in range(1, model.nbody)]
    return [name for name in names if name]


def _lighten(model: mujoco.MjModel) -> None:
    """Leave out what costs time and shows in no small image."""
    quality = model.vis.quality
    quality.offsamples = 0
    quality.numslices = min(quality.numslices, 16)  # round things as prisms of so many sides
    quality.numstacks = min(quality.numstacks, 8)
    quality.numquads = min(quality.numquads, 2)
    quality.shadowsize = 0  # shadows cost more than all the rest, and no keypoint is on one
    model.light_castshadow[:] = 0
    model.mat_reflectance[:] = 0
    decimate_meshes(model)


def _strip_dynamics(spec: mujoco.MjSpec) -> None:
    """Delete what moves things and measures them: none of it is seen, and the ray tracer does not support all of it."""
    for group in (spec.keys, spec.sensors, spec.actuators, spec.equalities, spec.pairs, spec.excludes, spec.tuples):
        for element in list(group):
            spec.delete(element)
    spec.option.noslip_iterations = 0


def _add_camera(spec: mujoco.MjSpec, plain: mujoco.MjModel, camera: CameraSpec) -> None:
    position, quaternion = np.array(camera.position), camera.mujoco_quaternion
    parent, mode = spec.worldbody, mujoco.mjtCamLight.mjCAMLIGHT_FIXED
    if camera.body is not None:
        parent = spec.body(camera.body)
        if parent is None:
            raise unknown(f"body of camera '{camera.name}'", camera.body, body_names(plain))
        if camera.follow == "track":  # MuJoCo keeps the world offset of the reference pose, so undo that pose's turn
            mode = mujoco.mjtCamLight.mjCAMLIGHT_TRACK
            position, quaternion = _in_reference_pose(plain, camera.body, position, quaternion)
    parent.add_camera(name=_CAMERA_PREFIX + camera.name, pos=position, quat=quaternion, fovy=camera.fovy, mode=mode)


def _compiled(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """A model, with no warning of its file: those were said when the environment was made from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return spec.compile()


def _name_bodies(spec: mujoco.MjSpec) -> None:
    """Bodies without a name are called after their parent, "puck_channel/1", so that they can be asked for."""
    taken = {body.name for body in spec.bodies}
    for body in spec.bodies[1:]:
        if not body.name:
            names = (f"{body.parent.name}/{number}" for number in itertools.count(1))
            body.name = next(name for name in names if name not in taken)
            taken.add(body.name)


def _add_marker(spec: mujoco.MjSpec, plain: mujoco.MjModel, marker: MarkerSpec) -> None:
    """Bodies are numbered in the order of the tree, so that the world's last child comes behind all others."""
    if marker.name in body_names(plain):
        raise UserError(f"marker '{marker.name}' has the name of a body of the model")
    body = spec.worldbody.add_body(name=marker.name, mocap=True)
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[marker.radius, 0, 0], rgba=marker.rgba)


def _in_reference_pose(
    plain: mujoco.MjModel, body: str, position: np.ndarray, quaternion: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn an offset along world axes into the body's frame at the model's reference pose (qpos0)."""
    data = mujoco.MjData(plain)
    mujoco.mj_kinematics(plain, data)
    inverse, turned = np.empty(4), np.empty(4)
    mujoco.mju_negQuat(inverse, data.xquat[plain.body(body).id])
    mujoco.mju_mulQuat(turned, inverse, quaternion)
    return data.xmat[plain.body(body).id].reshape(3, 3).T @ position, turned
