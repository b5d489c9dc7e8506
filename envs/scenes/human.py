"""A human of varying shape with the 16 joints of Human3.6M: capsules on a tree of ball joints, posed, never simulated.

Lengths of segments are shares of stature by Drillis and Contini, as in Winter, "Biomechanics and Motor Control of Human
Movement", 2009, figure 4.1; bodies differ about these.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from envs.scenes.looks import Look, dress

JOINTS = (
    "pelvis",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "spine",
    "neck",
    "head",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right shoulder",
    "right elbow",
    "right wrist",
)
"""Names of the 16 points; "head" is its top."""
LIMBS = (
    (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9),
    (8, 10), (10, 11), (11, 12), (8, 13), (13, 14), (14, 15),
)  # fmt: skip
"""The 15 pairs of points that are joined."""
SIDES = (0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 2, 2, 2, 1, 1, 1)
"""Of each point: 0 the middle, 1 the right side, 2 the left."""

ROTATIONS = (
    "root",
    "chest",
    "neck",
    "right hip",
    "right knee",
    "right ankle",
    "right shoulder",
    "right elbow",
    "left hip",
    "left knee",
    "left ankle",
    "left shoulder",
    "left elbow",
)
"""Names of the 13 rotations of a pose, the root's in the world, all others in their parents' frames."""
MIRROR = (0, 1, 2, 8, 9, 10, 11, 12, 3, 4, 5, 6, 7)
"""Where each rotation's counterpart is."""
TOUCHING = 0.03
"""Metres by which capsules may lie in each other: flesh is soft."""
_MATERIALS = ("skin", "shirt", "trousers", "shoes")


@dataclass(frozen=True)
class BodyShape:
    """What tells one body from another.

    :param stature: metres.
    :param arms: factor of the arms' length; 1 is the average.
    :param legs: of the legs'.
    :param torso: of the torso's.
    :param shoulders: of the shoulders' breadth.
    :param hips: of the hips'.
    :param girth: of all thicknesses.
    """

    stature: float = 1.70
    arms: float = 1.0
    legs: float = 1.0
    torso: float = 1.0
    shoulders: float = 1.0
    hips: float = 1.0
    girth: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> BodyShape:
        """A random one: 1.5 to 1.95 m, proportions with a standard deviation of 5 %, girth of 12 %."""
        factors = np.clip(rng.normal(1.0, 0.05, 5), 0.85, 1.15)
        return cls(float(rng.uniform(1.5, 1.95)), *map(float, factors), float(np.clip(rng.normal(1.0, 0.12), 0.7, 1.4)))


class Human:
    """A body whose joints are set, with the truth of its points.

    The root's frame has x forward, y to the left and z up where the body stands upright.

    Attributes: ``spec``, ``model`` and ``data`` (never simulated).

    :param shape: of the body.
    :param look: what it and its room are drawn with; None draws a body in the void.
    """

    def __init__(self, shape: BodyShape | None = None, look: Look | None = None) -> None:
        self.shape = BodyShape() if shape is None else shape
        self.spec = mujoco.MjSpec()
        for name in _MATERIALS:
            self.spec.add_material(name=name, rgba=[0.7, 0.7, 0.7, 1.0])
        self._build()
        if look is not None:
            dress(self.spec, look, _MATERIALS)
        self.model = self.spec.compile()
        self.data = mujoco.MjData(self.model)
        self._addresses = np.array([self.model.joint(name).qposadr[0] for name in ROTATIONS])
        self._addresses[0] += 3  # the root's joint has a position first
        self._points = [self.model.site(name).id for name in JOINTS]

    def pose(self, rotations: np.ndarray, position: object = (0.0, 0.0, 0.0)) -> None:
        """Put the body somewhere.

        :param rotations: (13, 4) unit quaternions, w first, as :data:`ROTATIONS` names them.
        :param position: (3,) of the pelvis, world metres.
        """
        self.data.qpos[:3] = position
        for address, quaternion in zip(self._addresses, rotations, strict=True):
            self.data.qpos[address : address + 4] = quaternion
        mujoco.mj_kinematics(self.model, self.data)

    def keypoints(self) -> np.ndarray:
        """(16, 3) world metres, as :data:`JOINTS` names them."""
        return self.data.site_xpos[self._points].copy()

    def penetration(self) -> float:
        """Metres by which parts of the body that are not joined lie in each other, at most; 0 where none do."""
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)
        return max((-float(contact.dist) for contact in self.data.contact), default=0.0)

    def _build(self) -> None:
        """The tree of bodies."""
        shape, tall = self.shape, self.shape.stature
        wide = 0.0955 * tall * shape.hips
        trunk = tall * shape.torso
        root = self.spec.worldbody.add_body(name="root")
        root.add_freejoint(name="root")
        _mark(root, "pelvis")
        self._capsule(root, (0, -0.6 * wide, 0), (0, 0.6 * wide, 0), 0.062, "trousers")
        chest = _joined(root, "chest", (0, 0, 0.13 * trunk))
        _mark(chest, "spine")
        self._capsule(chest, (0, 0, 0), (0, 0, 0.09 * trunk), 0.070, "shirt")
        broad = 0.1295 * tall * shape.shoulders
        self._capsule(chest, (0, -0.55 * broad, 0.115 * trunk), (0, 0.55 * broad, 0.115 * trunk), 0.060, "shirt")
        neck = _joined(chest, "neck", (0, 0, 0.165 * trunk))
        _mark(neck, "neck")
        _mark(neck, "head", (0.01 * tall, 0, 0.182 * tall))
        self._capsule(neck, (0, 0, 0), (0, 0, 0.06 * tall), 0.030, "skin")
        self._capsule(neck, (0.01 * tall, 0, 0.105 * tall), (0.01 * tall, 0, 0.13 * tall), 0.050, "skin")
        for side, sign in (("right", -1.0), ("left", 1.0)):
            self._leg(root, side, sign * wide)
            self._arm(chest, side, (0, sign * broad, 0.140 * trunk))

    def _leg(self, root: mujoco.MjsBody, side: str, across: float) -> None:
        thigh, shank, foot = (share * self.shape.stature * self.shape.legs for share in (0.245, 0.246, 0.152))
        hip = _joined(root, f"{side} hip", (0, across, 0))
        self._capsule(hip, (0, 0, 0), (0, 0, -thigh), 0.043, "trousers")
        knee = _joined(hip, f"{side} knee", (0, 0, -thigh))
        self._capsule(knee, (0, 0, 0), (0, 0, -shank), 0.030, "trousers")
        ankle = _joined(knee, f"{side} ankle", (0, 0, -shank))
        self._capsule(ankle, (-0.2 * foot, 0, -0.12 * foot), (0.6 * foot, 0, -0.12 * foot), 0.021, "shoes")
        for body, name in ((hip, "hip"), (knee, "knee"), (ankle, "ankle")):
            _mark(body, f"{side} {name}")

    def _arm(self, chest: mujoco.MjsBody, side: str, at: tuple[float, float, float]) -> None:
        upper, fore, hand = (share * self.shape.stature * self.shape.arms for share in (0.186, 0.146, 0.108))
        shoulder = _joined(chest, f"{side} shoulder", at)
        self._capsule(shoulder, (0, 0, 0), (0, 0, -upper), 0.029, "shirt")
        elbow = _joined(shoulder, f"{side} elbow", (0, 0, -upper))
        self._capsule(elbow, (0, 0, 0), (0, 0, -fore), 0.023, "skin")
        self._capsule(elbow, (0, 0, -fore - 0.2 * hand), (0, 0, -fore - 0.5 * hand), 0.024, "skin")
        _mark(shoulder, f"{side} shoulder")
        _mark(elbow, f"{side} elbow")
        _mark(elbow, f"{side} wrist", (0, 0, -fore))

    def _capsule(self, body: mujoco.MjsBody, start: object, end: object, thick: float, material: str) -> None:
        """Part of a body; ``thick`` is its radius as a share of stature."""
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=[*start, *end],  # type: ignore[misc]
            size=[thick * self.shape.stature * self.shape.girth, 0, 0],
            material=material,
        )


def _joined(parent: mujoco.MjsBody, name: str, at: tuple[float, float, float]) -> mujoco.MjsBody:
    """A body on a ball joint of the same name."""
    body = parent.add_body(name=name, pos=at)
    body.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_BALL)
    return body


def _mark(body: mujoco.MjsBody, name: str, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
    body.add_site(name=name, pos=at, size=[0.001] * 3, group=5)
