"""Chairs, planes and cars from random parameters, with the exact places of some of their parts.

Every object has x forward and z up, its longest side is 2 units, and its bounding box is about the origin. What varies
are proportions, styles of parts and colours; the landmarks of a category are always the same parts, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from envs.errors import unknown

_COLOURS = 3
"""Colours of an object: parts share them."""


@dataclass(frozen=True)
class Part:
    """A primitive of an object.

    :param shape: "box", "cylinder", "capsule" or "ellipsoid".
    :param size: (3,) half sides, or radius and half length along z as MuJoCo has them.
    :param position: (3,) of its middle.
    :param rotation: of its own axes.
    :param colour: index of the object's colours.
    """

    shape: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    rotation: Rotation = field(default_factory=Rotation.identity)
    colour: int = 0

    def half_extent(self) -> np.ndarray:
        """(3,) half sides of its bounding box along the object's axes."""
        turn, size = np.abs(self.rotation.as_matrix()), np.array(self.size)
        if self.shape == "box":
            return turn @ size
        if self.shape == "ellipsoid":
            return np.sqrt((turn**2) @ size**2)
        axis = turn[:, 2]
        round_ = np.ones(3) if self.shape == "capsule" else np.sqrt(np.clip(1.0 - axis**2, 0.0, 1.0))
        return size[1] * axis + size[0] * round_


@dataclass(frozen=True)
class ObjectSpec:
    """An object.

    :param parts: that it is made of.
    :param landmarks: (L, 3) exact places of parts, object units.
    :param colours: (3, 3) from 0 to 1.
    """

    parts: tuple[Part, ...]
    landmarks: np.ndarray
    colours: np.ndarray

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) least and (3,) greatest coordinates."""
        middles = np.array([part.position for part in self.parts])
        halves = np.array([part.half_extent() for part in self.parts])
        return (middles - halves).min(0), (middles + halves).max(0)

    def normalised(self) -> ObjectSpec:
        """The same about the origin, its longest side 2 units."""
        low, high = self.bounds()
        middle, factor = 0.5 * (low + high), 2.0 / (high - low).max()
        parts = [
            replace(
                part,
                size=tuple(factor * np.array(part.size)),
                position=tuple(factor * (np.array(part.position) - middle)),
            )
            for part in self.parts
        ]
        return ObjectSpec(tuple(parts), factor * (self.landmarks - middle), self.colours)

    def to_mjcf(self) -> mujoco.MjSpec:
        """The object on its own in the dark, with a light from above."""
        spec = in_the_dark()
        body = spec.worldbody.add_body(name="object")
        for part in self.parts:
            body.add_geom(
                type=getattr(mujoco.mjtGeom, f"mjGEOM_{part.shape.upper()}"),
                size=part.size,
                pos=part.position,
                quat=part.rotation.as_quat(scalar_first=True),
                rgba=[*self.colours[part.colour], 1.0],
            )
        return spec


def in_the_dark() -> mujoco.MjSpec:
    """A scene with nothing in it but a light from above."""
    spec = mujoco.MjSpec()
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.headlight.diffuse = [0.25] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.visual.map.znear, spec.visual.map.zfar = 0.1, 100.0
    spec.stat.extent, spec.stat.center = 2.0, [0.0, 0.0, 0.0]
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=[0, 0, -1], diffuse=[0.5] * 3, castshadow=False
    )
    return spec


def draw_object(category: str, rng: np.random.Generator) -> ObjectSpec:
    """An object of a category, normalised.

    :param category: of :data:`CATEGORIES`.
    :param rng: what to draw from.
    :raises UserError: for an unknown category.
    """
    if category not in CATEGORIES:
        raise unknown("category", category, CATEGORIES)
    parts, landmarks = CATEGORIES[category](rng)
    return ObjectSpec(tuple(parts), np.array(landmarks, float), rng.uniform(0.15, 1.0, (_COLOURS, 3))).normalised()


Drawn = tuple[list[Part], list[tuple[float, float, float]]]


def _chair(rng: np.random.Generator) -> Drawn:
    """Landmarks: four feet (front left, front right, rear left, rear right), so the seat's corners, two of the back."""
    deep, wide, high = rng.uniform(0.2, 0.3), rng.uniform(0.2, 0.3), rng.uniform(0.35, 0.55)
    thick, tall, lean = rng.uniform(0.015, 0.04), rng.uniform(0.3, 0.7), np.radians(rng.uniform(0, 18))
    parts = [Part("box", (deep, wide, thick), (0, 0, high))]
    corners = [(x * deep, y * wide) for x in (1, -1) for y in (1, -1)]
    feet = _legs(parts, corners, high - thick, rng)
    top = _back(parts, (-deep, wide, high), tall, lean, rng)
    if rng.random() < 0.4:
        _arms(parts, deep, wide, high, rng)
    return parts, [*feet, *((x, y, high + thick) for x, y in corners), *top]


def _legs(parts: list[Part], corners: list[tuple[float, float]], high: float, rng: np.random.Generator) -> list:
    """Four legs, straight or splayed, or four feet about a column; where they touch the ground."""
    kind, thin = rng.integers(3), rng.uniform(0.012, 0.03)
    reach = rng.uniform(0.75, 0.95) if kind < 2 else rng.uniform(0.7, 1.0)
    splay = rng.uniform(1.0, 1.3) if kind == 1 else 1.0
    feet = [(reach * splay * x, reach * splay * y, 0.0) for x, y in corners]
    if kind == 2:
        parts.append(Part("cylinder", (1.3 * thin, high / 2, 0), (0, 0, high / 2), colour=1))
        parts += [_rod((0, 0, 0.06), foot, thin, "capsule") for foot in feet]
        return feet
    shape = "box" if kind == 0 else "capsule"
    parts += [_rod((reach * x, reach * y, high), foot, thin, shape) for (x, y), foot in zip(corners, feet, strict=True)]
    return feet


def _back(
    parts: list[Part], place: tuple[float, float, float], tall: float, lean: float, rng: np.random.Generator
) -> list:
    """A slab, upright bars or rungs between two posts; the upper corners."""
    x, wide, high = place
    turn = Rotation.from_euler("y", -lean)
    thin, narrow = rng.uniform(0.01, 0.03), rng.uniform(0.8, 1.0)

    def at(y: float, z: float) -> tuple[float, float, float]:
        return tuple(np.array([x, 0, high]) + turn.apply([0, y, z]))

    kind = rng.integers(3)
    if kind == 0:
        parts.append(Part("box", (thin, narrow * wide, tall / 2), at(0, tall / 2), turn, 2))
    else:
        rail = rng.uniform(0.02, 0.06)
        parts.append(Part("box", (thin, narrow * wide, rail), at(0, tall - rail), turn, 2))
        parts += [
            Part("box", (thin, 0.02, tall / 2), at(side * (narrow * wide - 0.02), tall / 2), turn, 2)
            for side in (1, -1)
        ]
        count = rng.integers(1, 5)
        for share in (np.arange(count) + 1) / (count + 1):
            if kind == 1:
                y = narrow * wide * (2 * share - 1)
                parts.append(Part("box", (thin, 0.015, tall / 2), at(y, tall / 2), turn, 2))
            else:
                parts.append(Part("box", (thin, narrow * wide, 0.02), at(0, share * tall), turn, 2))
    return [at(side * narrow * wide, tall) for side in (1, -1)]


def _arms(parts: list[Part], deep: float, wide: float, high: float, rng: np.random.Generator) -> None:
    lift, thin = rng.uniform(0.15, 0.25), rng.uniform(0.012, 0.03)
    for side in (1, -1):
        y = side * (wide - thin)
        parts.append(Part("box", (deep, thin, 0.015), (0, y, high + lift), colour=1))
        parts.append(_rod((0.8 * deep, y, high), (0.8 * deep, y, high + lift), thin, "box"))


def _plane(rng: np.random.Generator) -> Drawn:
    """Landmarks: nose, tail, tips of the wings (left, right), their roots, tips of the tailplane and the fin, roof."""
    radius, nose = rng.uniform(0.05, 0.1), rng.uniform(0.4, 0.55)
    shape = "ellipsoid" if rng.random() < 0.4 else "capsule"
    size = (radius, radius, 0.5) if shape == "ellipsoid" else (radius, 0.5 - radius, 0)
    parts = [Part(shape, size, (0, 0, 0), Rotation.from_euler("y", np.pi / 2))]
    where = (rng.uniform(-0.08, 0.15), rng.uniform(-0.8, 0.8) * radius)
    span, chord, sweep = rng.uniform(0.35, 0.6), rng.uniform(0.06, 0.12), rng.uniform(0, 35)
    tips, roots = _wings(parts, where, span, chord, sweep, rng.uniform(-3, 8), 1)
    tail = (-0.45, rng.uniform(0, 0.6) * radius)
    ends, _ = _wings(parts, tail, rng.uniform(0.13, 0.25), rng.uniform(0.03, 0.06), rng.uniform(0, 35), 0, 2)
    high = rng.uniform(0.13, 0.25)
    slope = np.radians(rng.uniform(0, 40))
    fin = Rotation.from_euler("y", -slope)
    foot = np.array([-0.45, 0.0, 0.3 * radius])
    parts.append(Part("box", (0.05, 0.008, high / 2), tuple(foot + fin.apply([0, 0, high / 2])), fin, 2))
    if rng.random() < 0.5:
        share = rng.uniform(0.3, 0.5)
        for tip, root in zip(tips, roots, strict=True):
            middle = np.array(root) + share * (np.array(tip) - root) + [0.03, 0, -0.045]
            parts.append(Part("capsule", (0.03, 0.05, 0), tuple(middle), Rotation.from_euler("y", np.pi / 2), 2))
    else:
        parts.append(
            Part("cylinder", (rng.uniform(0.1, 0.16), 0.006, 0), (0.5, 0, 0), Rotation.from_euler("y", np.pi / 2), 2)
        )
    cockpit = (nose - 0.2, 0.0, 0.8 * radius)
    parts.append(Part("ellipsoid", (0.1, 0.6 * radius, 0.6 * radius), cockpit, colour=2))
    top = (cockpit[0], 0.0, 1.4 * radius)
    return parts, [(0.5, 0, 0), (-0.5, 0, 0), *tips, *roots, *ends, tuple(foot + fin.apply([0, 0, high])), top]


def _wings(
    parts: list[Part], where: tuple[float, float], span: float, chord: float, sweep: float, dihedral: float, colour: int
) -> tuple[list, list]:
    """Two flat wings; the middles of their tips and of their roots."""
    tips, roots = [], []
    for side in (1, -1):
        turn = Rotation.from_euler("zx", [side * sweep, side * dihedral], degrees=True)
        root = np.array([where[0], 0.0, where[1]])
        along = turn.apply([0, side * span, 0])
        parts.append(Part("box", (chord, span / 2, 0.008), tuple(root + 0.5 * along), turn, colour))
        tips.append(tuple(root + along))
        roots.append(tuple(root + 0.2 * along))
    return tips, roots


def _car(rng: np.random.Generator) -> Drawn:
    """Landmarks: four wheels (front left, front right, rear left, rear right), so the roof's corners, front, rear."""
    wide, radius, body = rng.uniform(0.18, 0.25), rng.uniform(0.07, 0.11), rng.uniform(0.06, 0.11)
    low, high = 0.7 * radius, rng.uniform(0.1, 0.2)
    deck = low + 2 * body
    front, rear = rng.uniform(0.08, 0.25), rng.uniform(-0.48, -0.15)
    slant, hatch = rng.uniform(0.05, 0.14), rng.uniform(0.0, 0.12)
    parts = [Part("box", (0.5, wide, body), (0, 0, low + body))]
    roof_front, roof_rear = front - slant, max(rear, -0.48) + hatch
    inner = rng.uniform(0.8, 0.95) * wide
    middle, half = 0.5 * (roof_front + roof_rear), 0.5 * (roof_front - roof_rear)
    parts.append(Part("box", (half, inner, high / 2), (middle, 0, deck + high / 2), colour=1))
    for start, end in (((front, deck), (roof_front, deck + high)), ((rear, deck), (roof_rear, deck + high))):
        parts.append(_pane(start, end, inner))
    wheels = [(x, side * wide) for x in (rng.uniform(0.28, 0.36), -rng.uniform(0.28, 0.36)) for side in (1, -1)]
    upright = Rotation.from_euler("x", np.pi / 2)
    parts += [Part("cylinder", (radius, 0.035, 0), (x, y, radius), upright, 2) for x, y in wheels]
    lamps = rng.uniform(0.02, 0.035)
    parts += [
        Part("ellipsoid", (0.015, lamps, lamps), (0.5, side * 0.7 * wide, low + 1.2 * body), colour=2)
        for side in (1, -1)
    ]
    if rng.random() < 0.3:  # a spoiler
        parts.append(Part("box", (0.04, 0.9 * wide, 0.008), (-0.45, 0, deck + 0.06), colour=2))
        parts += [
            Part("box", (0.015, 0.01, 0.03), (-0.45, side * 0.6 * wide, deck + 0.03), colour=2) for side in (1, -1)
        ]
    roof = [(x, side * inner, deck + high) for x in (roof_front, roof_rear) for side in (1, -1)]
    return parts, [*((x, y, radius) for x, y in wheels), *roof, (0.5, 0, low + body), (-0.5, 0, low + body)]


def _pane(start: tuple[float, float], end: tuple[float, float], wide: float) -> Part:
    """A flat pane from one (x, z) to another, across the car."""
    first, last = np.array(start), np.array(end)
    way = last - first
    turn = Rotation.from_euler("y", np.arctan2(way[0], way[1]))
    middle = 0.5 * (first + last)
    return Part("box", (0.012, wide, 0.5 * float(np.linalg.norm(way))), (middle[0], 0.0, middle[1]), turn, 2)


def _rod(start: tuple[float, float, float], end: tuple[float, float, float], thin: float, shape: str) -> Part:
    """A bar from one place to another."""
    first, last = np.array(start, float), np.array(end, float)
    way = last - first
    length = float(np.linalg.norm(way))
    turn = Rotation.align_vectors([way / length], [[0, 0, 1]])[0] if length else Rotation.identity()
    size = (thin, thin, length / 2) if shape == "box" else (thin, length / 2, 0.0)
    return Part(shape, size, tuple(0.5 * (first + last)), turn, 1)


CATEGORIES: dict[str, Callable[[np.random.Generator], Drawn]] = {"chair": _chair, "plane": _plane, "car": _car}
"""What can be drawn."""
LANDMARKS = 10
"""Of every category."""
