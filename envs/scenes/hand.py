"""A human-like hand with 21 keypoints: the Shadow hand that Gymnasium-Robotics packages, with things about it.

Nothing here is simulated: joints follow smooth paths within their limits, a grasp closes each finger until it touches.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from envs.errors import UserError
from envs.scenes.looks import Look, dress

FINGERS = ("thumb", "index", "middle", "ring", "little")
_BODIES = {
    "thumb": ("thproximal", "thmiddle", "thdistal"),
    "index": ("ffproximal", "ffmiddle", "ffdistal"),
    "middle": ("mfproximal", "mfmiddle", "mfdistal"),
    "ring": ("rfproximal", "rfmiddle", "rfdistal"),
    "little": ("lfproximal", "lfmiddle", "lfdistal"),
}
_TIP = {finger: 0.0275 if finger == "thumb" else 0.026 for finger in FINGERS}
_PREFIX = "robot0:"
_BASE = _PREFIX + "hand mount"
_MATERIAL = _PREFIX + "MatViz"

KEYPOINTS = ("wrist", *(f"{finger} {joint}" for finger in FINGERS for joint in ("base", "middle", "end", "tip")))
"""Names of the 21 points, the wrist first, then from root to tip of each finger."""
GROUPS = (5, *(number for number in range(5) for _ in range(4)))
"""Which points are decided together: those of a finger; the wrist is alone."""
BONES = tuple(
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
"""The 20 pairs of keypoints whose distance hardly changes, from wrist to tips."""
CENTRE = np.array([0.02, -0.01, 0.08])
"""About the middle between wrist, thumb and fingertips, in the palm's frame, metres."""
PALM_NORMAL = np.array([0.0, -1.0, 0.0])
"""Where the palm looks to, in its own frame: fingers curl that way."""


def hand_file() -> str:
    """Path of the hand's MJCF.

    :raises UserError: where Gymnasium-Robotics is not installed, or has no such hand.
    """
    found = importlib.util.find_spec("gymnasium_robotics")  # its environments are not imported: only the files are used
    if found is None or not found.submodule_search_locations:
        raise UserError("the hand needs Gymnasium-Robotics: pip install 'kp3d_rl[hand]'")
    path = Path(next(iter(found.submodule_search_locations))) / "envs" / "assets" / "hand" / "reach.xml"
    if not path.is_file():
        raise UserError(f"this version of Gymnasium-Robotics has no hand: {path} is missing")
    return str(path)


@dataclass(frozen=True)
class ThingSpec:
    """A thing that the hand holds, or that passes by.

    :param shape: "box", "sphere", "cylinder", "capsule" or "ellipsoid".
    :param size: (3,) as MuJoCo's geom sizes, metres.
    """

    shape: str
    size: tuple[float, float, float]


class Hand:
    """The hand as a model whose joints are set, with the truth of its keypoints.

    Attributes: ``spec``, ``model`` and ``data`` (never simulated), ``joints`` (24,) addresses in qpos, ``limits``
    (24, 2) radians.

    :param look: what it, its room and the things are drawn with.
    :param things: that move with or near it.
    :raises UserError: where the hand's files are missing.
    """

    def __init__(self, look: Look | None = None, things: Sequence[ThingSpec] = ()) -> None:
        self.spec = mujoco.MjSpec.from_file(hand_file())
        for element in (self.spec.body("floor0"), self.spec.geom("floor0")):
            self.spec.delete(element)
        self.spec.body(_BASE).add_freejoint(name="hand")
        for number, thing in enumerate(things):
            _add(self.spec, number, thing)
        materials = (_MATERIAL, *(f"thing/{number}" for number in range(len(things))))
        dress(self.spec, Look() if look is None else look, materials)
        self.model = self.spec.compile()
        self.data = mujoco.MjData(self.model)
        hinges = np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE)
        self.joints, self.limits = self.model.jnt_qposadr[hinges], self.model.jnt_range[hinges]
        self.joint_names = tuple(self.model.joint(int(hinge)).name.removeprefix(_PREFIX) for hinge in hinges)
        self.things = tuple(self.model.geom(f"thing/{number}").id for number in range(len(things)))
        self._screens = {*self.things, self.model.geom(_PREFIX + "V_forearm").id}
        self._palm = self.model.body(_PREFIX + "palm").id
        self._points = [(self.model.body(_PREFIX + body).id, offset) for body, offset in _point_bodies()]

    def pose(self, joints: np.ndarray, rotation: np.ndarray, centre: np.ndarray) -> None:
        """Put the hand somewhere.

        :param joints: (24,) radians, cut to their limits.
        :param rotation: (3, 3) of the palm's frame in the world (x to the thumb's side, -y out of the palm, z to the
            fingers).
        :param centre: (3,) where :data:`CENTRE` comes to lie, world metres.
        """
        data = self.data
        data.qpos[self.joints] = np.clip(joints, *self.limits.T)
        base = self.model.joint("hand").qposadr[0]
        data.qpos[base : base + 7] = [0, 0, 0, 1, 0, 0, 0]
        mujoco.mj_kinematics(self.model, data)
        palm = data.xmat[self._palm].reshape(3, 3)
        turn = rotation @ palm.T
        data.qpos[base : base + 3] = centre - turn @ (data.xpos[self._palm] + palm @ CENTRE)
        mujoco.mju_mat2Quat(data.qpos[base + 3 : base + 7], turn.ravel())
        mujoco.mj_kinematics(self.model, data)

    def place(self, number: int, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Put a thing somewhere.

        :param number: which.
        :param position: (3,) world metres.
        :param quaternion: (4,) unit.
        """
        start = self.model.joint(f"thing/{number}").qposadr[0]
        self.data.qpos[start : start + 7] = [*position, *quaternion]
        mujoco.mj_kinematics(self.model, self.data)

    def keypoints(self) -> np.ndarray:
        """(21, 3) world metres, as :data:`KEYPOINTS` names them."""
        data = self.data
        return np.stack([data.xpos[body] + data.xmat[body].reshape(3, 3)[:, 2] * along for body, along in self._points])

    def palm(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3) and position (3,) of the palm in the world."""
        return self.data.xmat[self._palm].reshape(3, 3).copy(), self.data.xpos[self._palm].copy()

    def touches(self, finger: str, number: int) -> bool:
        """Whether a finger, by its collision shapes, touches a thing.

        :param finger: of :data:`FINGERS`.
        :param number: of the thing.
        """
        bodies = [self.model.body(_PREFIX + body).id for body in _BODIES[finger]]
        ours = np.flatnonzero(np.isin(self.model.geom_bodyid, bodies) & (self.model.geom_contype > 0))
        distances = (
            mujoco.mj_geomDistance(self.model, self.data, int(g), self.things[number], 1.0, None) for g in ours
        )
        return any(distance <= 0 for distance in distances)

    def hidden_from(self, positions: np.ndarray) -> np.ndarray:
        """Whether things, or the forearm, hide all of the keypoints.

        :param positions: (V, 3) of the cameras, world metres.
        :return: (V,) bool.
        """
        geom, points = np.full(1, -1, np.int32), self.keypoints()

        def hides(start: np.ndarray, point: np.ndarray) -> bool:
            met = mujoco.mj_ray(self.model, self.data, start, point - start, _SEEN_GROUPS, 1, -1, geom, None)
            return 0 <= met < 1 and int(geom[0]) in self._screens

        return np.array([all(hides(start, point) for point in points) for start in positions])


def bone_limits(poses: int = 500, seed: int = 0) -> np.ndarray:
    """(20, 2) least and greatest length of each of :data:`BONES` over random poses, metres.

    :param poses: how many.
    :param seed: of the poses.
    """
    hand, rng = Hand(Look(plain=True)), np.random.default_rng(seed)
    first, second = np.array(BONES).T
    lengths = []
    for _ in range(poses):
        hand.pose(rng.uniform(*hand.limits.T), np.eye(3), np.zeros(3))
        points = hand.keypoints()
        lengths.append(np.linalg.norm(points[first] - points[second], axis=1))
    return np.stack([np.min(lengths, 0), np.max(lengths, 0)], 1)


def _point_bodies() -> list[tuple[str, float]]:
    """The body that each keypoint is on, and how far along its z."""
    found = [("wrist", 0.0)]
    for finger in FINGERS:
        found += [(body, 0.0) for body in _BODIES[finger]] + [(_BODIES[finger][-1], _TIP[finger])]
    return found


_THINGS_GROUP = 2
_SEEN_GROUPS = np.array([0, 1, 1, 0, 0, 0], np.uint8)  # what is drawn of the hand, and things


def _add(spec: mujoco.MjSpec, number: int, thing: ThingSpec) -> None:
    name = f"thing/{number}"
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    spec.add_material(name=name)
    shape = getattr(mujoco.mjtGeom, f"mjGEOM_{thing.shape.upper()}")
    body.add_geom(name=name, type=shape, size=thing.size, material=name, group=_THINGS_GROUP)
