"""Another scene for the same task: new colours, another start box, cameras at other places, all drawn from one seed.

It shows whether what works on a task's own scene works on it alone. Physics, actions, reward and success stay.
"""

from __future__ import annotations

import colorsys
import dataclasses
import itertools
from collections.abc import Sequence

import mujoco
import numpy as np

from envs.cameras import CameraSpec, WorkspaceSpec
from envs.colours import ColourSlot, colour_difference, colour_slots
from envs.errors import UserError
from envs.visual_model import with_children

TARGET_CONTRAST = 50.0
"""Least CIE 1976 colour difference between a target and all else. 2 is just noticeable, 100 is black on white; at 50
two colours have different names, whatever the light."""
ROBOT_CONTRAST = 40.0
"""Least colour difference between what moves by joints and what stands still."""
AZIMUTH, ELEVATION = 30.0, 15.0  # degrees by which a camera moves at most
LOWEST, HIGHEST = 12.0, 70.0  # degrees of elevation: not along the table, not down the arm from above
FOVY = 0.15  # share by which a field of view changes at most
FILL = (0.80, 0.94)  # where in the image the outermost corner of the box lies: 0 is the middle, 1 the border
CROSSING = 45.0  # degrees: the least angle between two cameras' lines of sight, unless the task's own are closer
_TRIES = 1000
# Hue is free; these are the ranges of saturation and value. What stands still is calmer than what moves.
_PAINT = {"still": ((0.0, 0.55), (0.30, 0.95)), "robot": ((0.2, 1.0), (0.25, 1.0)), "target": ((0.75, 1.0), (0.6, 1.0))}


def redraw_cameras(
    cameras: Sequence[CameraSpec], workspace: WorkspaceSpec, rng: np.random.Generator
) -> tuple[CameraSpec, ...]:
    """Move cameras around a workspace; each still has the whole box in its (square) image, with a margin.

    Cameras that are mounted on a body stay where they are.

    :param cameras: the task's own; names, and which way is up, stay.
    :param workspace: the box, fixed in the world.
    :param rng: decides.
    :raises UserError: where the workspace moves, or no cameras can be found that see it from different sides.
    """
    if workspace.body is not None:
        raise UserError(f"cannot redraw cameras around a workspace that follows body '{workspace.body}'")
    least = min(CROSSING, 0.7 * _least_crossing(cameras, workspace))
    for _ in range(_TRIES):
        moved = tuple(_moved(camera, workspace, rng) for camera in cameras)
        if _least_crossing(moved, workspace) >= least:
            return moved
    raise UserError(f"cannot redraw {len(cameras)} cameras: found no places whose lines of sight cross at {least:.0f}°")


def redraw_box(box: WorkspaceSpec, within: WorkspaceSpec, rng: np.random.Generator) -> WorkspaceSpec:
    """Another box in which things start: 0.6 to 1.4 times the size along each axis, anywhere inside another box.

    :param box: the task's own.
    :param within: what it must stay inside of, with a margin of 5 %.
    :param rng: decides.
    """
    room = 0.95 * np.array(within.half_extents)
    half = np.minimum(np.array(box.half_extents) * rng.uniform(0.6, 1.4, 3), room)
    centre = np.array(within.centre) + rng.uniform(-1.0, 1.0, 3) * (room - half)
    return dataclasses.replace(box, centre=tuple(centre), half_extents=tuple(half))


def redraw_colours(model: mujoco.MjModel, targets: Sequence[str], rng: np.random.Generator) -> None:
    """Paint everything that shows anew.

    The rule by which a person still sees what matters: a target's colour is saturated and bright, and differs from
    every other colour in the scene, the sky's too, by at least :data:`TARGET_CONTRAST`; what moves by joints differs
    from all that stands still by at least :data:`ROBOT_CONTRAST`.

    :param model: the physics model; only its colours change.
    :param targets: names of the bodies that are targets.
    :param rng: decides.
    :raises UserError: where no such colours are found.
    """
    slots = colour_slots(model)
    kinds = [_kind(model, slot, targets) for slot in slots]
    sky = _sky(model)
    for _ in range(_TRIES):
        colours = _draw_colours(kinds, sky, rng)
        if colours is not None:
            for slot, colour in zip(slots, colours, strict=True):
                slot.write(model, colour)
            return
    raise UserError(f"cannot redraw {len(slots)} colours: found none in which targets and robot stand out")


def _moved(camera: CameraSpec, workspace: WorkspaceSpec, rng: np.random.Generator) -> CameraSpec:
    """A camera turned about the workspace, at the distance from which the box just fits."""
    azimuth, elevation = rng.uniform(-1.0, 1.0, 2) * (AZIMUTH, ELEVATION)
    fovy = camera.fovy * (1.0 + FOVY * rng.uniform(-1.0, 1.0))
    look_at = np.array(workspace.centre) + 0.15 * rng.uniform(-1.0, 1.0, 3) * workspace.half_extents
    fill = rng.uniform(*FILL)
    if camera.body is not None:
        return camera
    x, y, z = np.array(camera.position) - workspace.centre
    azimuth = np.arctan2(y, x) + np.radians(azimuth)
    elevation = np.radians(np.clip(np.degrees(np.arctan2(z, np.hypot(x, y))) + elevation, LOWEST, HIGHEST))
    away = np.array([*(np.cos(elevation) * np.array([np.cos(azimuth), np.sin(azimuth)])), np.sin(elevation)])
    right = np.cross(camera.up, away)
    right /= np.linalg.norm(right)
    corners = workspace.corners() - look_at
    sideways = np.abs(corners @ np.stack([right, np.cross(away, right)], axis=1)).max(axis=1)
    # A corner at depth d - corner . away lies at sideways / depth / tan(fovy / 2) of half the image.
    distance = (sideways / (fill * np.tan(np.radians(fovy) / 2)) + corners @ away).max()
    position = look_at + distance * away
    return dataclasses.replace(
        camera, position=tuple(position), look_at=tuple(look_at), quaternion=None, fovy=float(fovy)
    )


def _least_crossing(cameras: Sequence[CameraSpec], workspace: WorkspaceSpec) -> float:
    """Smallest angle, degrees, at which the lines of sight of two fixed cameras cross in the workspace's centre."""
    away = [np.array(camera.position) - workspace.centre for camera in cameras if camera.body is None]
    away = [direction / np.linalg.norm(direction) for direction in away]
    cosines = [abs(a @ b) for a, b in itertools.combinations(away, 2)]
    return float(np.degrees(np.arccos(min(1.0, max(cosines, default=0.0)))))


def _kind(model: mujoco.MjModel, slot: ColourSlot, targets: Sequence[str]) -> str:
    """Who wears a colour: a "target", the "robot" and all else that moves, or what stands "still"."""
    bodies = model.geom_bodyid[list(slot.geoms)]
    named = np.zeros(model.nbody, dtype=bool)
    named[[model.body(name).id for name in targets]] = True
    if with_children(model, named)[bodies].any():
        return "target"
    moving = (model.body_jntnum > 0) | (model.body_mocapid >= 0)
    return "robot" if with_children(model, moving)[bodies].any() else "still"


def _sky(model: mujoco.MjModel) -> np.ndarray:
    """(3,) colour of what is seen where nothing stands: the sky's texture, or black without one."""
    for texture in np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
        first, channels = model.tex_adr[texture], model.tex_nchannel[texture]
        size = model.tex_height[texture] * model.tex_width[texture] * channels
        pixels = model.tex_data[first : first + size].reshape(-1, channels)[:, :3]
        return np.median(pixels, axis=0) / 255.0  # not the mean: the face below the horizon is often black
    return np.zeros(3)


def _draw_colours(kinds: Sequence[str], sky: np.ndarray, rng: np.random.Generator) -> list[np.ndarray] | None:
    """(3,) red, green and blue for each kind; None where some would not stand out."""
    colours: list[np.ndarray] = []
    for kind in kinds:
        (least, most), (darkest, brightest) = _PAINT[kind]
        hsv = rng.uniform(0.0, 1.0), rng.uniform(least, most), rng.uniform(darkest, brightest)
        colours.append(np.array(colorsys.hsv_to_rgb(*hsv)))
    seen = [("still", sky), *zip(kinds, colours, strict=True)]
    for (kind, colour), (other, another) in itertools.combinations(seen, 2):
        if kind == other:
            continue
        needed = TARGET_CONTRAST if "target" in (kind, other) else ROBOT_CONTRAST
        if colour_difference(colour, another) < needed:
            return None
    return colours
