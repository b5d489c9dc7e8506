"""People in poses of motion clips, split by clip, by body and by camera: exact joints, and images.

A person's pelvis is at the world's origin. Cameras stand on a ring about it and look at it, so that their images are
what a crop about the root joint would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from envs.cameras import CameraSpec
from envs.errors import UserError
from envs.renderers import Renderer
from envs.scenes.clips import Clip, draw_poses
from envs.scenes.human import BodyShape, Human
from envs.scenes.looks import Look
from envs.visual_model import VisualModel

EXTENT = 2.4
"""Metres that an image shows at the pelvis' depth."""
NEAREST, FARTHEST = 3.5, 5.5
"""Metres from cameras to the pelvis."""
LOWEST, HIGHEST = np.radians(-5.0), np.radians(30.0)
"""Elevations of cameras."""
ROOM = 7.0
"""Metres from the middle to each wall."""
LOOKS = 100
"""Rooms and clothes that differ, at most, in a set of images: each is a model to compile."""


@dataclass(frozen=True)
class People:
    """N poses of some bodies.

    :param shapes: of the bodies.
    :param bodies: (N,) which of them.
    :param rotations: (N, 13, 4) quaternions, as :data:`envs.scenes.human.ROTATIONS` names them.
    :param joints: (N, 16, 3) relative to the pelvis, metres, as :data:`envs.scenes.human.JOINTS` names them.
    """

    shapes: tuple[BodyShape, ...]
    bodies: np.ndarray
    rotations: np.ndarray
    joints: np.ndarray

    def __len__(self) -> int:
        return len(self.joints)


def draw_people(
    clips: Sequence[Clip], count: int, bodies: int, seed: int, show: Callable[[int, int], None] | None = None
) -> People:
    """Random poses made from clips.

    :param clips: that they are made from.
    :param count: N.
    :param bodies: how many differ.
    :param seed: of all that is random.
    :param show: is told how many of how many are done.
    """
    shapes, rotations = _shapes(bodies, seed), []
    done = 0
    for number, part in enumerate(np.array_split(np.arange(count), bodies)):
        rng = np.random.default_rng([seed, 1, number])
        rotations.append(
            draw_poses(clips, len(part), Human(shapes[number]), rng) if len(part) else np.empty((0, 13, 4))
        )
        done += len(part)
        if show is not None:
            show(done, count)
    numbers = np.concatenate([np.full(len(part), number) for number, part in enumerate(rotations)])
    return _posed(shapes, numbers, np.concatenate(rotations))


def play_people(clips: Sequence[Clip], count: int, bodies: int, seed: int, turning: bool = True) -> People:
    """Frames of clips as they were recorded, spread evenly over all of them.

    :param clips: that are played.
    :param count: N, at most all frames there are.
    :param bodies: how many differ; they take turns.
    :param seed: of bodies and of where they look.
    :param turning: each frame looks anywhere; otherwise as it was recorded.
    :raises UserError: for more frames than there are.
    """
    frames = np.concatenate([clip.rotations for clip in clips]) if clips else np.empty((0, 13, 4))
    if not 1 <= count <= len(frames):
        raise UserError(f"{count} test poses were asked for: the {len(clips)} clips have {len(frames)} frames")
    rotations = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    rng = np.random.default_rng([seed, 2])
    turn = np.zeros((count, 3))
    turn[:, 2] = rng.uniform(0, 2 * np.pi, count) * turning
    root = Rotation.from_rotvec(turn) * Rotation.from_quat(rotations[:, 0], scalar_first=True)
    rotations[:, 0] = root.as_quat(scalar_first=True)
    return _posed(_shapes(bodies, seed), np.arange(count) % bodies, rotations)


def ring(trained: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Where cameras stand: those to learn from evenly about the person, at changing heights, others between them.

    :param trained: how many of the first kind.
    :param held_out: of the second.
    :return: (trained, 3) and (held_out, 3) metres from the pelvis.
    """
    first = np.arange(trained) / trained
    second = (np.arange(held_out) * max(trained // max(held_out, 1), 1) + 0.5) / trained
    return _places(first, np.arange(trained)), _places(second, np.arange(held_out) + 0.5)


def virtual_places(count: int, rng: np.random.Generator) -> np.ndarray:
    """Cameras that are nowhere: random places between the ring's heights and distances.

    :param count: how many.
    :param rng: what to draw from.
    :return: (count, 3) metres from the pelvis.
    """
    azimuth, elevation = rng.uniform(0, 2 * np.pi, count), rng.uniform(LOWEST, HIGHEST, count)
    return _spherical(azimuth, elevation, rng.uniform(NEAREST, FARTHEST, count))


def record_people(
    people: People,
    places: np.ndarray,
    pixels: int,
    seed: int,
    renderer: Renderer,
    show: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Images of people in rooms and clothes that differ.

    :param people: who, in which poses.
    :param places: (C, 3) of the cameras, metres from the pelvis.
    :param pixels: height and width.
    :param seed: of the looks.
    :param renderer: draws them.
    :param show: is told how many of how many are done.
    :return: (N, C, H, W, 3) uint8.
    """
    images = np.empty((len(people), len(places), pixels, pixels, 3), np.uint8)
    looks = max(1, LOOKS // len(people.shapes))
    done = 0
    for body, shape in enumerate(people.shapes):
        mine = np.flatnonzero(people.bodies == body)
        for number, part in enumerate(np.array_split(mine, min(looks, max(len(mine), 1)))):
            human = Human(shape, Look(int(np.random.default_rng([seed, body, number]).integers(1 << 30)), room=ROOM))
            visual = VisualModel(human.spec, human.model, cameras_at(places))
            for at in part:
                human.pose(people.rotations[at])
                visual.sync(human.model, human.data)
                images[at] = renderer.render(visual, pixels, pixels)
            done += len(part)
            if show is not None:
                show(done, len(people))
    return images


def cameras_at(places: np.ndarray) -> list[CameraSpec]:
    """Cameras that look at the pelvis and show :data:`EXTENT` at its depth.

    :param places: (C, 3) metres from the pelvis.
    """
    distances = np.linalg.norm(places, axis=1)
    fovy = np.degrees(2 * np.arctan(0.5 * EXTENT / distances))
    return [
        CameraSpec(f"ring-{number}", tuple(map(float, place)), look_at=(0.0, 0.0, 0.0), fovy=float(angle))
        for number, (place, angle) in enumerate(zip(places, fovy, strict=True))
    ]


def _shapes(bodies: int, seed: int) -> tuple[BodyShape, ...]:
    rng = np.random.default_rng([seed, 0])
    return tuple(BodyShape.draw(rng) for _ in range(bodies))


def _posed(shapes: tuple[BodyShape, ...], bodies: np.ndarray, rotations: np.ndarray) -> People:
    humans = [Human(shape) for shape in shapes]
    joints = np.empty((len(bodies), 16, 3))
    for number, (body, pose) in enumerate(zip(bodies, rotations, strict=True)):
        humans[body].pose(pose)
        joints[number] = humans[body].keypoints()
    return People(shapes, bodies, rotations, joints - joints[:, :1])


def _places(turns: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Places at shares of a whole turn; heights and distances change along the golden section."""
    share = (numbers + 0.5) * 0.618034 % 1.0
    far = (numbers + 0.5) * 0.754878 % 1.0
    return _spherical(2 * np.pi * turns, LOWEST + (HIGHEST - LOWEST) * share, NEAREST + (FARTHEST - NEAREST) * far)


def _spherical(azimuth: np.ndarray, elevation: np.ndarray, distance: np.ndarray) -> np.ndarray:
    flat = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    return flat * distance[..., None]
