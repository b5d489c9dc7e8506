"""How a hand moves through a sequence: smooth random poses, or a grasp; things that it holds, or that pass by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation, Slerp

from envs.scenes.hand import CENTRE, FINGERS, PALM_NORMAL, Hand, ThingSpec

FRAMES_PER_SECOND = 10
FACING = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
"""Of a palm that looks along the world's x axis, fingers up."""
HEADING = 0.9
"""Radians by which the palm is turned from there about the vertical, as a standard deviation."""
TILT = 0.3
"""Radians by which the fingers lean from the vertical, as a standard deviation along each axis."""
_CURL = {"thumb": ("THJ0", "THJ1", "THJ3"), "index": "FFJ", "middle": "MFJ", "ring": "RFJ", "little": "LFJ"}
_CLOSING_STEPS = 20
_HELD = np.array([0.0, -0.01, 0.10])  # over which place of the palm a thing is held, in its frame
_SHAPES = ("box", "sphere", "cylinder", "capsule", "ellipsoid")


@dataclass(frozen=True)
class Path:
    """Where all is in each frame.

    :param joints: (T, 24) radians.
    :param rotations: (T, 3, 3) of the palm in the world.
    :param centres: (T, 3) of the hand's middle, world metres.
    :param things: (T, N, 7) positions and unit quaternions of the things; those that are held follow the palm.
    """

    joints: np.ndarray
    rotations: np.ndarray
    centres: np.ndarray
    things: np.ndarray

    def apply(self, hand: Hand, frame: int) -> None:
        """Bring a hand to one of the frames."""
        hand.pose(self.joints[frame], self.rotations[frame], self.centres[frame])
        for number, pose in enumerate(self.things[frame]):
            hand.place(number, pose[:3], pose[3:])


def draw_things(rng: np.random.Generator) -> tuple[ThingSpec, ...]:
    """One to three things of the size of a cup: the first may come to be held."""
    return tuple(
        ThingSpec(str(rng.choice(_SHAPES)), tuple(rng.uniform(0.015, 0.035, 3))) for _ in range(rng.integers(1, 4))
    )


def draw_path(hand: Hand, frames: int, rng: np.random.Generator, grasps: bool) -> Path:
    """A smooth path of hand and things.

    :param hand: whose joints it is for; it is left in some pose.
    :param frames: T, at 10 a second.
    :param rng: what to draw from.
    :param grasps: whether it closes round its first thing and holds it.
    """
    seconds = frames / FRAMES_PER_SECOND
    rotations = _rotations(frames, seconds, rng)
    centres = _smooth(rng.uniform(-0.015, 0.015, (_knots(seconds, 1.0), 3)), frames)
    joints = _joints(hand, frames, seconds, rng)
    things = np.zeros((frames, len(hand.things), 7))
    for number in range(len(hand.things)):
        things[:, number] = _passing(frames, seconds, rng)
    if grasps and hand.things:
        joints, held = _grasp(hand, joints, frames, rng)
        palms = [(rotation, centre - rotation @ CENTRE) for rotation, centre in zip(rotations, centres, strict=True)]
        things[:, 0] = [_pose_of(rotation @ held[0], rotation @ held[1] + at) for rotation, at in palms]
    return Path(joints, rotations, centres, things)


def _knots(seconds: float, each: float) -> int:
    return max(2, int(np.ceil(seconds / each)) + 1)


def _smooth(values: np.ndarray, frames: int) -> np.ndarray:
    """(frames, ...) a monotone cubic through values (N, ...) at equal times: it never leaves their range."""
    return PchipInterpolator(np.linspace(0, 1, len(values)), values)(np.linspace(0, 1, frames))


def _rotations(frames: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(T, 3, 3) of a hand that is held up, the palm about to the world's x axis, turning and leaning all the time."""
    turns = []
    for heading in rng.normal(0, HEADING, _knots(seconds, 1.5)):
        lean = Rotation.from_rotvec([*rng.normal(0, TILT, 2), 0.0])
        turns.append(lean * Rotation.from_rotvec([0, 0, heading]) * Rotation.from_matrix(FACING))
    times = np.linspace(0, 1, len(turns))
    return Slerp(times, Rotation.concatenate(turns))(np.linspace(0, 1, frames)).as_matrix()


def _joints(hand: Hand, frames: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(T, 24): the hand closes more or less, each finger a little otherwise, and its joints a little by themselves.

    Fingers of people move together, too: two principal components have 80 % of the variance of their grasps (Santello,
    Flanders, Soechting, "Postural Hand Synergies for Tool Use", 1998).
    """
    count = _knots(seconds, 0.7)
    low, high = hand.limits.T
    share = rng.uniform(0.2, 0.8, (count, len(hand.joints)))
    closing = rng.uniform(0.0, 0.7, (count, 1))
    for finger in FINGERS:
        curl = np.clip(closing + rng.normal(0.0, 0.12, (count, 1)), 0, 1)
        own = _curling(hand, finger)
        share[:, own] = np.clip(curl + 0.07 * rng.standard_normal((count, len(own))), 0, 1)
    sideways = [n for n, name in enumerate(hand.joint_names) if name.endswith("J3") and not name.startswith("TH")]
    share[:, sideways] = 0.5 + 0.35 * (share[:, sideways] - 0.5)
    return _smooth(low + share * (high - low), frames)


def _curling(hand: Hand, finger: str) -> list[int]:
    """Indices of the joints by which a finger closes."""
    names = _CURL[finger]
    wanted = names if isinstance(names, tuple) else tuple(f"{names}{n}" for n in range(3))
    return [hand.joint_names.index(name) for name in wanted]


def _grasp(
    hand: Hand, joints: np.ndarray, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Fingers that close round the first thing and stay, and where that is in the palm's frame (rotation, position)."""
    turn = Rotation.random(random_state=rng).as_matrix()
    position = _HELD + (0.012 + rng.uniform(0.03, 0.045)) * PALM_NORMAL + rng.uniform(-0.01, 0.01, 3)
    open_pose = np.clip(np.zeros(len(hand.joints)), *hand.limits.T)
    opposed = hand.joint_names.index("THJ4")
    open_pose[opposed] = rng.uniform(0.5, 0.9) * hand.limits[opposed, 1]
    closed = open_pose.copy()
    hand.pose(open_pose, np.eye(3), CENTRE)  # the palm is the world
    hand.place(0, position, _quaternion(turn))
    for finger in FINGERS:
        own = _curling(hand, finger)
        full = np.where(np.abs(hand.limits[own, 0]) > hand.limits[own, 1], *hand.limits[own].T)
        for share in np.linspace(0, 0.9, _CLOSING_STEPS):
            pose = open_pose.copy()
            pose[own] = share * full
            hand.pose(pose, np.eye(3), CENTRE)
            if hand.touches(finger, 0):
                break
            closed[own] = pose[own]
    start, end = sorted(rng.uniform(0.1, 0.7, 2))
    closing = np.clip((np.linspace(0, 1, frames) - start) / max(end - start, 0.15), 0, 1)[:, None]
    closing = closing**2 * (3 - 2 * closing)
    loose = open_pose + 0.3 * (joints - joints.mean(0))  # it is never quite still
    return (1 - closing) * np.clip(loose, *hand.limits.T) + closing * closed, (turn, position)


def _passing(frames: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(T, 7) a thing that drifts about the hand, turning."""
    count = _knots(seconds, 1.2)
    direction = rng.normal(size=(count, 3))
    way = direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(0.10, 0.20, (count, 1))
    spin = Rotation.from_rotvec(np.linspace(0, 1, frames)[:, None] * rng.normal(0, 2, 3))
    turns = (spin * Rotation.random(random_state=rng)).as_quat(scalar_first=True)
    return np.concatenate([_smooth(way, frames), turns], 1)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(rotation).as_quat(scalar_first=True)


def _pose_of(rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    return np.concatenate([position, _quaternion(rotation)])
