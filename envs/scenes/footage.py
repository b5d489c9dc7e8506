"""Images of a scene by calibrated cameras, with the truth beside them: what detectors are trained and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from envs.cameras import CameraRig, CameraSpec
from envs.renderers import Renderer
from envs.scenes.hand import KEYPOINTS, Hand
from envs.scenes.looks import Look
from envs.scenes.motion import FACING, TILT, draw_path, draw_things
from envs.visual_model import VisualModel

DISTANCE = 0.75
FOVY = 20.0
HEIGHTS = (-0.6, 0.85)
"""Sines of the elevations of the lowest and the highest camera."""
AROUND = np.radians(80.0)
"""Azimuth of the outermost cameras to both sides of the world's x axis."""
_GOLDEN = 0.5 * (1 + 5**0.5)


@dataclass(frozen=True)
class Footage:
    """A sequence as V synchronized cameras saw it.

    :param images: (T, V, H, W, 3) uint8.
    :param points: (T, K, 3) the truth, world metres.
    :param hidden: (T, V) bool, views in which nothing of it can be seen.
    :param rig: of the cameras, world frame.
    """

    images: np.ndarray
    points: np.ndarray
    hidden: np.ndarray
    rig: CameraRig


def dome(count: int, distance: float = DISTANCE, fovy: float = FOVY) -> tuple[CameraSpec, ...]:
    """Cameras on the half of a sphere about the world's origin to which the palm looks, evenly spread.

    They come in an order in which the first few are spread out, too.

    :param count: how many.
    :param distance: metres.
    :param fovy: degrees.
    """
    index = np.arange(count) + 0.5
    height = HEIGHTS[0] + (HEIGHTS[1] - HEIGHTS[0]) * index / count
    turn = AROUND * (2.0 * (index / _GOLDEN % 1.0) - 1.0)
    around = np.sqrt(1 - height**2)
    places = np.stack([np.cos(turn) * around, np.sin(turn) * around, height], 1)
    order = _farthest_first(places)
    return tuple(
        CameraSpec(f"dome-{number}", tuple(distance * places[at]), look_at=(0.0, 0.0, 0.0), fovy=fovy)
        for number, at in enumerate(order)
    )


def split_dome(trained: int, held_out: int) -> tuple[tuple[CameraSpec, ...], tuple[CameraSpec, ...]]:
    """Cameras to train on, the first of which are spread out, and others between them to be judged by.

    :param trained: how many of the first kind.
    :param held_out: how many of the second.
    """
    cameras = dome(trained + held_out)
    return cameras[:trained], cameras[trained:]


def record_hand(
    cameras: Sequence[CameraSpec], frames: int, pixels: int, seed: int, renderer: Renderer, plain: bool = False
) -> Footage:
    """A hand that moves, in a room of its own, among things; half of the seeds let it grasp one.

    :param cameras: that see it.
    :param frames: T, 10 a second.
    :param pixels: height and width of the images.
    :param seed: of motion, things and looks.
    :param renderer: draws it.
    :param plain: one grey look for all seeds.
    """
    rng = np.random.default_rng([seed, 1])
    hand = Hand(Look(seed, plain), draw_things(rng))
    path = draw_path(hand, frames, rng, grasps=bool(rng.random() < 0.5))
    visual = VisualModel(hand.spec, hand.model, cameras)
    images = np.empty((frames, len(cameras), pixels, pixels, 3), np.uint8)
    points, hidden = [], []
    for frame in range(frames):
        path.apply(hand, frame)
        visual.sync(hand.model, hand.data)
        images[frame] = renderer.render(visual, pixels, pixels)
        rig = visual.rig(pixels, pixels)
        points.append(hand.keypoints())
        hidden.append(hand.hidden_from(rig.world_from_camera[:, :3, 3]))
    return Footage(images, np.stack(points), np.stack(hidden), rig)


def label_hands(
    count: int, pixels: int, seed: int, renderer: Renderer, cone: float = 30.0, looks: int = 100
) -> Footage:
    """Single images of a hand that nothing hides, from a cone of views about the palm's normal.

    What a person would label first. A detector that learns from them knows neither the back of a hand, nor its sides,
    nor things before it.

    :param count: T, each a pose of its own.
    :param pixels: height and width of the images.
    :param seed: of poses and looks.
    :param renderer: draws them.
    :param cone: degrees between the palm's normal and the way to the camera, at most.
    :param looks: rooms and hands that differ; 0 is one plain grey one.
    """
    rng = np.random.default_rng([seed, 2])
    camera = CameraSpec("label", (DISTANCE, 0.0, 0.0), look_at=(0.0, 0.0, 0.0), fovy=FOVY)
    images, points = np.empty((count, 1, pixels, pixels, 3), np.uint8), np.empty((count, len(KEYPOINTS), 3))
    for part in np.array_split(np.arange(count), min(max(looks, 1), count)):
        hand = Hand(Look(int(rng.integers(1 << 30)), plain=looks == 0))
        visual = VisualModel(hand.spec, hand.model, [camera])
        for number in part:
            _face(hand, rng, np.radians(cone))
            visual.sync(hand.model, hand.data)
            images[number] = renderer.render(visual, pixels, pixels)
            points[number] = hand.keypoints()
    return Footage(images, points, np.zeros((count, 1), bool), visual.rig(pixels, pixels))


def _face(hand: Hand, rng: np.random.Generator, cone: float) -> None:
    """Turn a hand's palm to a camera on the world's x axis, up to an angle in radians, in any pose."""
    joints = draw_path(hand, 2, rng, grasps=False).joints[0]
    away = cone * np.sqrt(rng.random())  # about evenly over the cone
    tilt = Rotation.from_rotvec(away * _unit(np.array([0.0, *rng.normal(size=2)])))
    roll = Rotation.from_rotvec([rng.normal(0, TILT), 0, 0])
    hand.pose(joints, (tilt * roll).as_matrix() @ FACING, rng.uniform(-0.015, 0.015, 3))


def _farthest_first(places: np.ndarray) -> list[int]:
    """Indices of places in an order in which each is as far as can be from all before it."""
    order, apart = [0], np.linalg.norm(places - places[0], axis=1)
    while len(order) < len(places):
        order.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(places - places[order[-1]], axis=1))
    return order


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
