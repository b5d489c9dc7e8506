"""People's motion: the clips of DeepMimic that PyBullet packages, and random poses made from them.

Source of the clips: Peng et al., "DeepMimic: Example-Guided Deep Reinforcement Learning of Physics-Based Character
Skills", 2018. They are few (1,620 frames), so random poses take limbs from several clips, between frames, mirrored, and
turn each joint a little; those in which the body lies in itself are thrown away.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from envs.errors import UserError, unknown
from envs.scenes.human import MIRROR, ROTATIONS, TOUCHING, Human

TRAINING = ("walk", "crawl", "dance_a", "getup_facedown", "getup_faceup", "spin", "backflip", "roll")
VALIDATION = ("jump", "punch")
TEST = ("run", "kick", "dance_b", "spinkick", "cartwheel")
"""Clips to learn from; those that runs are judged by while they learn, and settings are chosen by; the end's."""
NOISE = np.radians(8.0)
"""Standard deviation of what is added to each joint of a random pose, radians."""
_SIZES = (4, 4, 4, 4, 1, 4, 4, 1, 4, 1, 4, 4, 1)
"""Numbers of each rotation in a file: quaternions, or angles of hinges, in the order of :data:`ROTATIONS`."""
_LIMBS = ((1, 2), (3, 4, 5), (6, 7), (8, 9, 10), (11, 12))
"""Rotations that a random pose takes from one clip: trunk, right leg, right arm, left leg, left arm."""


@dataclass(frozen=True)
class Clip:
    """A recorded motion.

    :param name: of the file.
    :param rotations: (T, 13, 4) quaternions, w first, as :data:`envs.scenes.human.ROTATIONS` names them; the world's z
        is up.
    :param positions: (T, 3) of the pelvis, metres, of the body that was recorded.
    :param seconds: between frames.
    """

    name: str
    rotations: np.ndarray
    positions: np.ndarray
    seconds: float

    def __len__(self) -> int:
        return len(self.rotations)


def read_clip(name: str) -> Clip:
    """A clip by name.

    :param name: of :data:`TRAINING`, :data:`VALIDATION` or :data:`TEST`.
    :raises UserError: for another name, where PyBullet is missing, or has no such file.
    """
    if name not in (*TRAINING, *VALIDATION, *TEST):
        raise unknown("motion clip", name, (*TRAINING, *VALIDATION, *TEST))
    path = _folder() / f"humanoid3d_{name}.txt"
    try:
        frames = np.array(json.loads(path.read_text())["Frames"], float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"motion clip {path} cannot be read: {error}") from None
    if frames.ndim != 2 or frames.shape[1] != 4 + sum(_SIZES) or not len(frames) or not np.isfinite(frames).all():
        raise UserError(f"motion clip {path} must hold frames of {4 + sum(_SIZES)} numbers, not {frames.shape}")
    parts = np.split(frames[:, 4:], np.cumsum(_SIZES)[:-1], axis=1)
    rotations = np.stack([_quaternions(part) for part in parts], 1)
    return Clip(name, rotations, _upright(frames[:, 1:4]), float(frames[0, 0]))


def mirrored(rotations: np.ndarray) -> np.ndarray:
    """Poses with left and right exchanged.

    :param rotations: (..., 13, 4).
    """
    return rotations[..., list(MIRROR), :] * np.array([1.0, -1.0, 1.0, -1.0])  # a reflection in the plane of x and z


def draw_poses(clips: Sequence[Clip], count: int, human: Human, rng: np.random.Generator) -> np.ndarray:
    """Random poses that a body can take.

    :param clips: that they are made from.
    :param count: N.
    :param human: whose parts must not lie in each other, but for :data:`~envs.scenes.human.TOUCHING` or what the clip's
        own pose has.
    :param rng: what to draw from.
    :return: (N, 13, 4) quaternions; each stands about upright, lies or hangs as its clip does, and looks anywhere.
    :raises UserError: where there is no clip.
    """
    if not clips:
        raise UserError("poses need at least one motion clip to be made from")
    found: list[np.ndarray] = []
    while len(found) < count:
        for own, pose in _candidates(clips, 2 * (count - len(found)) + 16, rng):
            human.pose(own)
            allowed = max(TOUCHING, human.penetration())
            human.pose(pose)
            if human.penetration() <= allowed and len(found) < count:
                found.append(pose)
    return np.array(found).reshape(count, len(ROTATIONS), 4)


def _candidates(clips: Sequence[Clip], count: int, rng: np.random.Generator) -> zip:
    """Poses as recorded (between frames), and what random limbs, a mirror and noise make of them."""
    own = _frames(clips, count, rng)
    pose = own.copy()
    for limb in _LIMBS:
        other, taken = _frames(clips, count, rng), rng.random(count) < 0.3
        share = rng.uniform(0.0, 1.0, count) * taken
        for joint in limb:
            pose[:, joint] = _between(own[:, joint], other[:, joint], share)
    noise = Rotation.from_rotvec(rng.normal(0.0, NOISE, (count * len(ROTATIONS), 3)))
    pose = _quaternion(_rotation(pose.reshape(-1, 4)) * noise).reshape(pose.shape)
    flip = rng.random(count) < 0.5
    pose[flip] = mirrored(pose[flip])
    turn = np.zeros((count, 3))
    turn[:, 2] = rng.uniform(0.0, 2 * np.pi, count)
    pose[:, 0] = _quaternion(Rotation.from_rotvec(turn) * _rotation(pose[:, 0]))
    return zip(own, pose, strict=True)


def _frames(clips: Sequence[Clip], count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 13, 4) poses from anywhere in the clips, each clip as often as any other."""
    lengths = np.array([len(clip) for clip in clips])
    which = rng.integers(len(clips), size=count)
    at = rng.uniform(0.0, lengths[which] - 1)
    first = np.minimum(at.astype(int), lengths[which] - 2) + (np.cumsum(lengths) - lengths)[which]
    frames = np.concatenate([clip.rotations for clip in clips])
    share = np.repeat(at % 1.0, len(ROTATIONS))
    between = _between(frames[first].reshape(-1, 4), frames[first + 1].reshape(-1, 4), share)
    return between.reshape(count, len(ROTATIONS), 4)


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quaternions (N, 4) on the way from one to another."""
    start = _rotation(first)
    return _quaternion(start * Rotation.from_rotvec((start.inv() * _rotation(second)).as_rotvec() * share[:, None]))


def _quaternions(numbers: np.ndarray) -> np.ndarray:
    """(T, 4) or (T, 1) numbers of a file, in its axes (x forward, y up, z right), as quaternions in ours."""
    if numbers.shape[1] == 1:  # the angle of a hinge about z
        numbers = np.concatenate([np.cos(numbers / 2), np.zeros((len(numbers), 2)), np.sin(numbers / 2)], 1)
    numbers = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    return np.concatenate([numbers[:, :1], _upright(numbers[:, 1:])], 1)


def _upright(vectors: np.ndarray) -> np.ndarray:
    """Vectors with y up as vectors with z up."""
    return np.stack([vectors[:, 0], -vectors[:, 2], vectors[:, 1]], 1)


def _rotation(quaternions: np.ndarray) -> Rotation:
    return Rotation.from_quat(quaternions, scalar_first=True)


def _quaternion(rotation: Rotation) -> np.ndarray:
    return rotation.as_quat(scalar_first=True)


def _folder() -> Path:
    found = importlib.util.find_spec("pybullet_data")  # PyBullet itself is not imported: only the files are used
    if found is None or not found.submodule_search_locations:
        raise UserError("people's motion needs PyBullet's data: pip install 'kp3d_rl[human]'")
    return Path(next(iter(found.submodule_search_locations))) / "data" / "motions"
