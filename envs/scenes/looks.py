"""How a scene looks: textures, colours, lights and a room around it, drawn from a seed.

What a detector may learn by heart it learns by heart; so every sequence looks different, and what is tested looks like
none that was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from scipy.ndimage import gaussian_filter

TEXTURE_SIDE = 64
TEXTURED = 0.1
"""How often a material of the model has a texture: on small fingers it hides what is finger."""
ROOM = 2.0
"""Metres from the middle to each wall, unless a look says otherwise."""
_THINGS = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CYLINDER)
_WALLS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


@dataclass(frozen=True)
class Look:
    """What a scene is drawn with.

    :param seed: of colours, textures, lights and things; equal seeds look alike.
    :param plain: one light, one grey wall and one colour instead: what a first labelled set was made before.
    :param things: that stand about in the room.
    :param room: metres from the middle to each wall; things about are as much larger as the room is.
    """

    seed: int = 0
    plain: bool = False
    things: int = 8
    room: float = ROOM


def dress(spec: mujoco.MjSpec, look: Look, materials: tuple[str, ...]) -> None:
    """Put a room with lights and things around a model, and give some of its materials colours and textures.

    :param spec: of a model without a room of its own.
    :param look: what to draw from.
    :param materials: names of the model's materials that are to look different each time.
    """
    rng = np.random.default_rng([look.seed, int(look.plain)])
    _light(spec, look, rng)
    for number, name in enumerate(materials):
        _paint(spec, spec.material(name), f"look/{number}", look, rng)
    for number, normal in enumerate(_WALLS):
        wall = spec.add_material(name=f"look/wall{number}")
        if look.plain:
            wall.rgba = [0.55, 0.55, 0.55, 1.0]
        else:
            _texture(spec, wall, f"look/wall{number}", rng, mujoco.mjtTexture.mjTEXTURE_2D)
            wall.texrepeat = rng.uniform(1, 4, 2)
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[look.room, look.room, 0.1],
            pos=-look.room * np.array(normal, float),
            quat=_facing(normal),
            material=wall.name,
            contype=0,
            conaffinity=0,
        )
    for number in range(0 if look.plain else look.things):
        _add_thing(spec, f"look/thing{number}", rng, look.room / ROOM)


def noise_texture(rng: np.random.Generator, side: int = TEXTURE_SIDE) -> np.ndarray:
    """Clouds, stripes, checks or grain in two to four colours.

    :param rng: what to draw from.
    :param side: pixels.
    :return: (side, side, 3) uint8.
    """
    rows, columns = np.mgrid[:side, :side] / side
    kind = rng.integers(4)
    if kind == 0:
        field = sum(gaussian_filter(rng.standard_normal((side, side)), s, mode="wrap") * s for s in (1, 3, 8))
    elif kind == 1:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 12)
        field = np.sin(2 * np.pi * waves * (np.cos(angle) * rows + np.sin(angle) * columns))
    elif kind == 2:
        cells = rng.integers(2, 9)
        field = (np.floor(rows * cells) + np.floor(columns * cells)) % 2 + 0.1 * rng.standard_normal((side, side))
    else:
        field = gaussian_filter(rng.standard_normal((side, side)), rng.uniform(0.5, 2), mode="wrap")
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-9)
    colours = rng.uniform(0, 255, (rng.integers(2, 5), 3))
    colours = colours.mean(0) + rng.uniform(0.2, 1.0) * (colours - colours.mean(0))
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(field, stops, channel) for channel in colours.T], -1).astype(np.uint8)


def _light(spec: mujoco.MjSpec, look: Look, rng: np.random.Generator) -> None:
    for light in list(spec.lights):
        spec.delete(light)
    head = spec.visual.headlight
    if look.plain:
        head.ambient, head.diffuse, head.specular = [0.35] * 3, [0.5] * 3, [0.1] * 3
        return
    head.ambient, head.diffuse = [rng.uniform(0.25, 0.45)] * 3, [rng.uniform(0.1, 0.4)] * 3
    head.specular = [0.1] * 3
    for number in range(rng.integers(1, 4)):
        direction = rng.normal(size=3)
        colour = rng.uniform(0.3, 0.7) * rng.uniform(0.75, 1.0, 3)
        spec.worldbody.add_light(
            name=f"look/light{number}",
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            dir=direction / np.linalg.norm(direction),
            diffuse=colour,
            specular=0.3 * colour,
            castshadow=False,
        )


def _paint(spec: mujoco.MjSpec, material: mujoco.MjsMaterial, name: str, look: Look, rng: np.random.Generator) -> None:
    """A colour for a material of the model, now and then a texture."""
    if look.plain:
        material.rgba = [0.75, 0.72, 0.7, 1.0]
        return
    material.rgba = [*_tinted(rng), 1.0]
    material.specular, material.shininess = rng.uniform(0.0, 0.7), rng.uniform(0.0, 0.5)
    material.reflectance = 0.0
    if rng.random() < TEXTURED:
        material.rgba = [1.0, 1.0, 1.0, 1.0]
        _texture(spec, material, name, rng, mujoco.mjtTexture.mjTEXTURE_CUBE)


def _tinted(rng: np.random.Generator) -> np.ndarray:
    """(3,) a grey, from middling to white, a quarter of it in a hue."""
    hue = rng.uniform(0.0, 1.0, 3)
    return rng.uniform(0.6, 1.0) * (0.75 + 0.25 * hue / hue.max())


def _texture(
    spec: mujoco.MjSpec,
    material: mujoco.MjsMaterial,
    name: str,
    rng: np.random.Generator,
    kind: mujoco.mjtTexture,
) -> None:
    """A texture of a material's own: an image, or one for each face of a cube."""
    faces = 6 if kind == mujoco.mjtTexture.mjTEXTURE_CUBE else 1
    image = np.concatenate([noise_texture(rng)] * faces)
    texture = spec.add_texture(name=name, type=kind, width=TEXTURE_SIDE, height=faces * TEXTURE_SIDE, nchannel=3)
    texture.data = image.tobytes()
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def _add_thing(spec: mujoco.MjSpec, name: str, rng: np.random.Generator, scale: float) -> None:
    """Something between the cameras' sphere and the walls, coloured by a texture half of the time."""
    direction = rng.normal(size=3)
    material = spec.add_material(name=name, rgba=[*rng.uniform(0.1, 1.0, 3), 1.0])
    if rng.random() < 0.5:
        material.rgba = [1.0, 1.0, 1.0, 1.0]
        _texture(spec, material, name, rng, mujoco.mjtTexture.mjTEXTURE_CUBE)
    quaternion = rng.normal(size=4)
    spec.worldbody.add_geom(
        type=_THINGS[rng.integers(len(_THINGS))],
        size=scale * rng.uniform(0.08, 0.3, 3),
        pos=direction / np.linalg.norm(direction) * scale * rng.uniform(1.3, ROOM),
        quat=quaternion / np.linalg.norm(quaternion),
        material=name,
        contype=0,
        conaffinity=0,
    )


def _facing(normal: tuple[int, int, int]) -> np.ndarray:
    """(4,) the rotation that brings z to a wall's normal."""
    quaternion = np.empty(4)
    mujoco.mju_quatZ2Vec(quaternion, np.array(normal, float))
    return quaternion
