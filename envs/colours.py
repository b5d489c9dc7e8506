"""The colours of a scene: where a model keeps them, and a wrapper that shuffles them for each episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

DRAWN_GROUPS = 3
"""MuJoCo draws the geoms of the groups 0, 1 and 2."""
_UNSET = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
"""The colour of a geom that has none of its own: where it has a material, it shows that one's."""

_XYZ_FROM_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@dataclass(frozen=True)
class ColourSlot:
    """One place of a model where a colour that shows is kept.

    :param material: whether it is a material's colour or a geom's own.
    :param index: id of that material or geom.
    :param geoms: ids of the geoms that show this colour.
    """

    material: bool
    index: int
    geoms: tuple[int, ...]

    def read(self, model: mujoco.MjModel) -> np.ndarray:
        """(3,) float32 red, green and blue in [0, 1]."""
        return self._row(model)[:3].copy()

    def write(self, model: mujoco.MjModel, colour: np.ndarray) -> None:
        """Paint; the opacity stays.

        :param colour: (3,) red, green and blue in [0, 1].
        """
        row = self._row(model)
        row[:3] = colour
        if not self.material and np.array_equal(row, _UNSET) and model.geom_matid[self.index] >= 0:
            row[0] += 1e-3  # else MuJoCo would take the material's colour

    def _row(self, model: mujoco.MjModel) -> np.ndarray:
        return (model.mat_rgba if self.material else model.geom_rgba)[self.index]


def colour_slots(model: mujoco.MjModel) -> list[ColourSlot]:
    """Where the colours of all visible geoms are kept: materials first, then geoms with a colour of their own.

    :param model: any compiled model; read only. Geoms that are transparent through and through, or in a group that is
        not drawn, are not visible.
    """
    shown: dict[tuple[bool, int], list[int]] = {}
    for geom in range(model.ngeom):
        own, material = model.geom_rgba[geom], int(model.geom_matid[geom])
        from_material = material >= 0 and np.array_equal(own, _UNSET)
        opacity = model.mat_rgba[material][3] if from_material else own[3]
        if opacity > 0 and model.geom_group[geom] < DRAWN_GROUPS:
            shown.setdefault((from_material, material if from_material else geom), []).append(geom)
    ordered = sorted(shown.items(), key=lambda item: (not item[0][0], item[0][1]))
    return [ColourSlot(material, index, tuple(geoms)) for (material, index), geoms in ordered]


def colour_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """How different two colours look: the CIE 1976 distance in L*a*b* (2 is just noticeable, 100 is black on white).

    :param first: (3,) sRGB red, green and blue in [0, 1].
    :param second: likewise.
    """
    return float(np.linalg.norm(_lab(first) - _lab(second)))


def _lab(colour: Sequence[float]) -> np.ndarray:
    """(3,) sRGB in [0, 1] to CIE L*, a*, b* under D65 (IEC 61966-2-1 and CIE 15)."""
    rgb = np.asarray(colour, dtype=np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ_FROM_RGB @ linear / (_XYZ_FROM_RGB @ np.ones(3))
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class ShuffledColours(gym.Wrapper):
    """Permute the scene's colours before each episode, by the episode's seed.

    Every colour goes to another place than its own. The physics model is painted, so all that look at it see the same;
    nothing but colours changes. An environment that sets colours of its own in ``reset`` overrules the shuffle.
    """

    def __init__(self, env: gym.Env) -> None:
        """:param env: its ``unwrapped`` has a ``model``."""
        super().__init__(env)
        model = self.unwrapped.model
        self._slots = colour_slots(model)
        self._own = [slot.read(model) for slot in self._slots]
        self._rng: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Shuffle and start an episode; the same seed gives the same colours."""
        if seed is not None or self._rng is None:
            self._rng = np.random.default_rng(seed)
        order = self._rng.permutation(len(self._slots))
        colours = list(self._own)
        for place, source in zip(order, np.roll(order, 1), strict=True):  # one cycle: no colour stays where it is
            colours[place] = self._own[source]
        self._paint(colours)
        return self.env.reset(seed=seed, options=options)

    def restore(self) -> None:
        """Give everything its own colour back; from the next image on it shows."""
        self._paint(self._own)

    def _paint(self, colours: Sequence[np.ndarray]) -> None:
        for slot, colour in zip(self._slots, colours, strict=True):
            slot.write(self.unwrapped.model, colour)
