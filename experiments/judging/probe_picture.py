"""One picture of what the keypoints sit on: views at a few instants of an episode, and a key to the colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from PIL import Image, ImageDraw

from experiments.judging.episodes import Act, play_episode
from experiments.judging.evaluation import Observation, stack
from experiments.judging.representation import Sitting
from experiments.preview import merged, visible
from experiments.video import beside, sharp_views
from kp3d_rl.drawing import INK, PAPER, caption, draw_keypoints, draw_marker, fitting_font, palette, tile
from kp3d_rl.keypoint3d import Keypoint3D, Keypoints

FAINT, WHITE = (128, 132, 148), (255, 255, 255)
KEY_WIDTH = 330
LABELS = 3
"""Up to so many bodies get their name written beside them."""


@dataclass(frozen=True)
class Instant:
    """What was seen at one instant, and where the bodies were.

    :param step: of the episode.
    :param views: (size, size, 3) uint8 each, sharp.
    :param observation: as a policy sees it.
    :param bodies: (B, 3) metres, workspace frame.
    """

    step: int
    views: list[np.ndarray]
    observation: Observation
    bodies: np.ndarray


def look(
    env: gym.Env, seed: int, act: Callable[[], Act], steps: int, names: Sequence[str], columns: int, size: int
) -> list[Instant]:
    """Play an episode, twice: once to see how long it is, once to look at instants that are spread evenly over it.

    :param env: a ``MultiViewObservation``.
    :param seed: of the episode.
    :param act: begins to act anew, the same each time.
    :param steps: longest part that is played.
    :param names: of the bodies.
    :param columns: how many instants.
    :param size: pixels per side of the sharp views.
    """
    length = sum(1 for _ in play_episode(env, seed, act(), steps, names))
    chosen = {int(step) for step in np.linspace(0, length - 1, columns).round()}
    return [
        Instant(step, sharp_views(env, size), observation, bodies[:, :3, 3])
        for step, (observation, bodies) in enumerate(play_episode(env, seed, act(), steps, names))
        if step in chosen
    ]


@torch.no_grad()
def probe_picture(
    encoder: Keypoint3D,
    instants: Sequence[Instant],
    cameras: Sequence[str],
    names: Sequence[str],
    sits: Sitting | None,
    radius: float,
    title: Sequence[str] = (),
) -> np.ndarray:
    """Views (rows) over time (columns) with keypoints and true bodies drawn in, beside the key to the colours.

    A large disc is a keypoint that sits on its body, a small one a keypoint that is but nearest to it. Keypoints that
    do not count are not drawn.

    :param encoder: finds the keypoints in the observations' views.
    :param instants: as :func:`look` gives them.
    :param cameras: names of the views.
    :param names: of the bodies of each instant.
    :param sits: what each keypoint sits on; None in 2D, where all keypoints are drawn, each view's own.
    :param radius: cm, largest median distance of a keypoint that sits on its body.
    :param title: lines above the key.
    :return: one uint8 image.
    """
    count = encoder.config.keypoints
    shown = np.ones(count, bool) if sits is None else sits.counted
    large = np.ones(count) if sits is None else np.where(sits.distance <= radius, 1.0, 0.12)
    columns = []
    for number, instant in enumerate(instants):
        uv, places = _pixels(encoder, instant)
        uv = np.where(shown[None, :, None], uv, np.nan)
        labels, _ = merged(names, instant.bodies)
        column = []
        for view, points, marks, camera in zip(instant.views, uv, places, cameras, strict=True):
            for mark, name in zip(marks, labels, strict=True):
                view = draw_marker(view, mark, WHITE, label=name if len(labels) <= LABELS and number == 0 else "")
            column.append(caption(draw_keypoints(view, points, large), f"{camera}, step {instant.step}"))
        columns.append(column)
    views = tile([column[row] for row in range(len(cameras)) for column in columns], columns=len(columns))
    return beside(views, _key(sits, radius, title, views.shape[0], count))


def _pixels(encoder: Keypoint3D, instant: Instant) -> tuple[np.ndarray, np.ndarray]:
    """Where keypoints (V, K, 2) and bodies (V, B', 2) are in the sharp views; NaN behind a camera."""
    size, device = instant.views[0].shape[0], encoder.centre.device
    seen = {key: torch.as_tensor(value, device=device) for key, value in stack([instant.observation]).items()}
    poses = seen.get("camera_poses")
    found: Keypoints = encoder(seen["images"], poses)
    rig = encoder.rig if poses is None else encoder.rig.with_poses(poses[0])
    rig = rig.to("cpu", torch.float64).resize(size, size)
    _, places = merged([str(n) for n in range(len(instant.bodies))], instant.bodies)
    if encoder.config.dimensions == "2d":
        uv = found.uv[0].cpu().numpy() * size / encoder.height
    else:
        uv = visible(rig, found.points[0].cpu().double())
    return uv, visible(rig, places)


def _key(sits: Sitting | None, radius: float, title: Sequence[str], height: int, count: int) -> np.ndarray:
    """Which colour is which keypoint, what it sits on and how near: (height, width, 3) uint8."""
    if sits is None:
        rows, notes = [(k, "", "", True) for k in range(count)], ["keypoints in 2D: each view shows its own"]
    else:
        near = sits.distance <= radius
        order = sorted(np.flatnonzero(sits.counted), key=lambda k: (~near[k], sits.distance[k]))
        rows = [
            (int(k), f"{'on' if near[k] else 'nearest to'} {sits.body[k]}", f"{sits.distance[k]:.1f} cm", bool(near[k]))
            for k in order
        ]
        notes = [
            "distances: median over all episodes",
            f"large: within {radius:g} cm of its body",
            f"not drawn: {count - len(rows)} keypoints that are not",
            "confident or whose body stands still",
        ]
    return _key_sheet(rows, [*notes, "white rings: the true places of the bodies"], title, height, palette(count))


def _key_sheet(
    rows: Sequence[tuple[int, str, str, bool]],
    notes: Sequence[str],
    title: Sequence[str],
    height: int,
    colours: np.ndarray,
) -> np.ndarray:
    """Title, one line for each keypoint (number, text, value, whether it is a large one), and notes."""
    sheet = Image.new("RGB", (KEY_WIDTH, height), PAPER)
    pen, top = ImageDraw.Draw(sheet), 6
    for line in title:
        pen.text((8, top), line, fill=INK, font=fitting_font(line, 15, KEY_WIDTH - 16))
        top += 20
    top += 10
    step = min(24.0, (height - top - 18 * len(notes) - 20) / max(len(rows), 1))
    size = max(9, round(0.66 * step))
    for k, text, value, near in rows:
        middle, disc, ink = top + 0.5 * step, (0.36 if near else 0.2) * step, INK if near else FAINT
        pen.ellipse([20 - disc, middle - disc, 20 + disc, middle + disc], fill=tuple(map(int, colours[k])), outline=INK)
        for left, word, anchor in ((38, str(k), "lm"), (66, text, "lm"), (KEY_WIDTH - 10, value, "rm")):
            pen.text((left, middle), word, fill=ink, font=fitting_font(word, size, 180), anchor=anchor)
        top += step
    for number, note in enumerate(notes):
        place = (8, top + 14 + 18 * number)
        pen.text(place, note, fill=FAINT, font=fitting_font(note, 13, KEY_WIDTH - 16))
    return np.asarray(sheet)
