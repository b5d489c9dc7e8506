"""Images of objects from random places above them, far away, with masks and poses: what KeypointNet learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from envs.cameras import CameraSpec
from envs.errors import UserError
from envs.renderers import Renderer
from envs.scenes.objects import draw_object
from envs.visual_model import VisualModel

DISTANCE = 30.0
"""Object units from the cameras to the origin: so far that lines of sight are nearly parallel."""
FOVY = 5.0
SHIFT = 0.1
"""Object units by which a camera, and what it looks at, is off along each axis, at most."""


@dataclass(frozen=True)
class ObjectViews:
    """S objects, each seen from N places.

    :param images: (S, N, H, W, 3) uint8, black where there is no object.
    :param masks: (S, N, H, W) bool, where there is.
    :param poses: (S, N, 4, 4) world_from_camera, in the object's frame.
    :param intrinsics: (3, 3) of every camera.
    :param landmarks: (S, L, 3) exact places of parts, object units; of objects that have none L is 0.
    """

    images: np.ndarray
    masks: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    landmarks: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def record_category(
    category: str,
    count: int,
    views: int,
    pixels: int,
    seed: int,
    renderer: Renderer,
    show: Callable[[int, int], None] | None = None,
) -> ObjectViews:
    """Objects of a category from random parameters.

    :param category: of :data:`envs.scenes.objects.CATEGORIES`.
    :param count: S; each object depends on its number and the seed alone.
    :param views: N of each.
    :param pixels: height and width of the images.
    :param seed: of objects and views.
    :param renderer: draws them.
    :param show: is told how many of how many are done.
    :raises UserError: for an unknown category.
    """
    parts = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        drawn = draw_object(category, rng)
        parts.append(
            (*record_object(drawn.to_mjcf(), views, pixels, rng, renderer, f"{category} {number}"), drawn.landmarks)
        )
        if show is not None:
            show(number + 1, count)
    images, masks, poses, intrinsics, landmarks = zip(*parts, strict=True)
    return ObjectViews(np.stack(images), np.stack(masks), np.stack(poses), intrinsics[0], np.stack(landmarks))


def record_object(
    spec: mujoco.MjSpec, views: int, pixels: int, rng: np.random.Generator, renderer: Renderer, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One object from random places.

    :param spec: the object on its own, about the origin, 2 units long.
    :param views: N.
    :param pixels: height and width.
    :param rng: the cameras are drawn from.
    :param renderer: draws it.
    :param name: of the object, for what is said of it.
    :return: images (N, H, W, 3), masks (N, H, W), poses (N, 4, 4) and intrinsics (3, 3).
    :raises UserError: where a view does not show the object.
    """
    model = spec.compile()
    visual = VisualModel(spec, model, draw_cameras(views, rng))
    images = renderer.render(visual, pixels, pixels)
    masks = renderer.segment(visual, pixels, pixels) >= 0
    if not masks.any((1, 2)).all():
        raise UserError(f"{name} is not to be seen from view {int(np.argmin(masks.any((1, 2))))}: it is out of frame")
    rig = visual.rig(pixels, pixels)
    return np.where(masks[..., None], images, 0), masks, rig.world_from_camera, rig.intrinsics[0]


def draw_cameras(count: int, rng: np.random.Generator) -> list[CameraSpec]:
    """Cameras evenly over the upper half of a sphere, upright, each a little off its aim."""
    height = rng.uniform(0.0, 0.98, count)  # straight from above, upright has no meaning
    turn = rng.uniform(0.0, 2 * np.pi, count)
    around = np.sqrt(1 - height**2)
    places = DISTANCE * np.stack([np.cos(turn) * around, np.sin(turn) * around, height], 1)
    shifts = rng.uniform(-SHIFT, SHIFT, (count, 3))
    return [
        CameraSpec(f"view-{number}", tuple(place + shift), look_at=tuple(shift), fovy=FOVY)
        for number, (place, shift) in enumerate(zip(places, shifts, strict=True))
    ]
