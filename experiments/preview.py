"""See what the cameras see: ``python -m experiments.preview --env reach-multiview [--cameras FILE]``.

Writes one picture of all views of an environment after a reset: sharp, with the workspace box and the true positions
of the task's bodies drawn in, and below at the resolution that a policy is trained on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from agents.scene import Scene
from envs import registry
from envs.errors import UserError
from envs.multiview import MultiViewObservation
from experiments.options.cli import parse, run_main
from experiments.options.config import RenderConfig
from experiments.runs import folder_name
from experiments.training.building import note_bodies_outside
from experiments.video import sharp_views
from kp3d_rl.cameras import Rig, Workspace, in_front
from kp3d_rl.drawing import caption, draw_box, draw_marker, palette, resize, tile

FORMATS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class PreviewConfig:
    """One picture of all views of an environment.

    :param env: registered task, or any MuJoCo Gymnasium id together with ``cameras``.
    :param cameras: YAML file of cameras in place of the task's own, or names of some of those, separated by commas.
    :param redraw: show the scene redrawn from this number, as the option of ``train``.
    :param seed: of the reset.
    :param size: pixels per side of the sharp views.
    :param image_size: pixels per side of the views below, as the option of ``train``.
    :param render: how images are made, as the option of ``train``.
    :param output: picture to write (.png or .jpg); by default preview-<env>.png in the current folder.
    """

    env: str = "reach-multiview"
    cameras: str | None = None
    redraw: int | None = None
    seed: int = 0
    size: int = 384
    image_size: int = 64
    render: RenderConfig = field(default_factory=RenderConfig)
    output: Path | None = None

    def __post_init__(self) -> None:
        for name in ("size", "image_size"):
            if not 16 <= getattr(self, name) <= 1024:
                raise ValueError(f"{name} must lie between 16 and 1024 pixels, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.output is not None and self.output.suffix.lower() not in FORMATS:
            raise ValueError(f"output '{self.output}' must end in {' or '.join(FORMATS)}")


def main(argv: Sequence[str]) -> None:
    """Reset, look, draw, write."""
    config = parse(PreviewConfig, argv)
    path = config.output or Path(f"preview-{folder_name(config.env)}.png")
    with contextlib.closing(make_env(config)) as env:
        env.reset(seed=config.seed)
        note_bodies_outside(env)
        picture = preview(env, config.size)
    try:
        iio.imwrite(path, picture)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    print(path)


def make_env(config: PreviewConfig) -> MultiViewObservation:
    """The environment at training resolution."""
    side = config.image_size
    return registry.make(
        config.env,
        cameras=config.cameras,
        height=side,
        width=side,
        renderer=config.render.backend,
        quality=config.render.quality,
        redraw=config.redraw,
    )


def preview(env: MultiViewObservation, size: int) -> np.ndarray:
    """All views of this instant, sharp and marked, over the same at the resolution that policies see.

    :param env: after a reset.
    :param size: pixels per side of every view.
    :return: one uint8 image.
    """
    scene = Scene(env.rig, env.workspace)
    rig, box = scene.rig.to(torch.float64), scene.workspace.to(torch.float64)
    names, bodies = merged(env.probe_bodies, env.body_positions(env.probe_bodies))
    sharp = marked(sharp_views(env, size), rig.resize(size, size), box, bodies, names)
    small = [resize(view, size, smooth=False) for view in env.render_views()]
    away = (rig.centres - box.centre).norm(dim=-1)
    top = [
        caption(view, f"{name}: {metres:.2f} m from the workspace's centre")
        for view, name, metres in zip(sharp, scene.cameras.names, away.tolist(), strict=True)
    ]
    below = [
        caption(view, f"{rig.width} x {rig.height} px: {lens(k)}")
        for view, k in zip(small, rig.intrinsics, strict=True)
    ]
    return tile(top + below, columns=len(top), gap=8)


def merged(names: Sequence[str], positions: np.ndarray) -> tuple[list[str], torch.Tensor]:
    """Bodies at one place, to the millimetre, get one marker: "torso +4".

    :param positions: (B, 3) metres.
    :return: B' names and (B', 3) float64.
    """
    groups: dict[tuple[float, ...], list[int]] = {}
    for number, place in enumerate(np.round(positions, 3).tolist()):
        groups.setdefault(tuple(place), []).append(number)
    labels = [names[g[0]] + (f" +{len(g) - 1}" if len(g) > 1 else "") for g in groups.values()]
    return labels, torch.as_tensor(positions[[g[0] for g in groups.values()]], dtype=torch.float64)


def lens(intrinsics: torch.Tensor) -> str:
    """Field of view and focal length in words; (3, 3) pixels, principal point in the middle."""
    focal, middle = float(intrinsics[1, 1]), float(intrinsics[1, 2])
    return f"fovy {2 * math.degrees(math.atan2(middle, focal)):.1f}°, focal length {focal:.1f} px"


def marked(
    views: Sequence[np.ndarray], rig: Rig, box: Workspace, bodies: torch.Tensor, names: Sequence[str]
) -> list[np.ndarray]:
    """Views with the wire frame of the workspace and a named marker on every body; what is behind a camera is left out.

    :param views: (H, W, 3) uint8 each, as large as the rig's images.
    :param bodies: (B, 3) metres.
    """
    drawn, colours = [], palette(len(names))
    corners, points = visible(rig, box.corners()), visible(rig, bodies)
    for view, corners_uv, points_uv in zip(views, corners, points, strict=True):
        picture = draw_box(view, corners_uv, box.edges())
        for uv, name, colour in reversed(list(zip(points_uv, names, colours, strict=True))):  # the first on top
            picture = draw_marker(picture, uv, colour, label=name)
        drawn.append(picture)
    return drawn


def visible(rig: Rig, points: torch.Tensor) -> np.ndarray:
    """(V, N, 2) pixels of points (N, 3); NaN behind a camera."""
    uv, depth = rig.project(points)
    return torch.where(in_front(depth)[..., None], uv, torch.nan).numpy()


if __name__ == "__main__":
    run_main(main)
