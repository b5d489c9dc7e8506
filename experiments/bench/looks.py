"""What speed costs in looks: light views against what the task's file asks for, and one renderer against another."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs import registry
from envs.renderers import Renderer, make_renderer
from envs.tasks.arm import ArmEnv
from envs.visual_model import VisualModel
from experiments.bench.scenes import BenchScene, hammer

Row = dict[str, Any]
LOOKS = "looks"
LEAST_PIXELS = 30
"""A geom of fewer pixels in a view says little: its border is most of it."""
FULL, LIGHT, TRACED = "full quality", "light", "light, by warp"


def looks(docs: Path, pixels: int = 128) -> list[Row]:
    """Differences of images and of their segmentation, for every task of our own and Meta-World's hammer.

    :param docs: folder for ``bench-looks.png``.
    :param pixels: height and width of a view.
    """
    own = [env_id for env_id in registry.env_ids() if issubclass(registry.task_class(env_id), ArmEnv)]
    scenes, rows, shown = [*(task(env_id, pixels) for env_id in own), hammer(pixels)], [], []
    for scene in scenes:
        with contextlib.ExitStack() as stack:
            found = {name: seen(*stack.enter_context(way), pixels) for name, way in _ways(scene).items()}
        for what, one, other in _comparisons(found):
            rows.append({"section": LOOKS, "scene": scene.name, "what": what} | compared(found[one], found[other]))
        shown.append((scene.name, {name: images for name, (images, _) in found.items() if name != "whole meshes"}))
    draw(shown, docs / "bench-looks.png")
    return rows


def task(env_id: str, pixels: int) -> BenchScene:
    """A registered task as it looks after its reset.

    :param env_id: which.
    :param pixels: height and width of a view.
    """
    env = registry.make(env_id, height=pixels, width=pixels)
    env.reset(seed=0)
    return BenchScene(f"{env_id}, {pixels} px", env.unwrapped, env.synced_visual().cameras, pixels)


def compared(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> Row:
    """How far two ways to show the same are apart.

    :param first: views (V, H, W, 3) uint8 and the ids of geoms (V, H, W) in them.
    :param second: the same of the other.
    :return: mean absolute difference, of 255, in the view where it is largest; mean and least intersection over union
        of geoms that the first shows in at least :data:`LEAST_PIXELS` pixels of a view, and their number.
    """
    difference = np.abs(first[0].astype(int) - second[0]).mean((1, 2, 3)).max()
    overlaps = []
    for one, other in zip(first[1], second[1], strict=True):
        for geom in np.unique(one[one >= 0]):
            a, b = one == geom, other == geom
            if a.sum() >= LEAST_PIXELS:
                overlaps.append((a & b).sum() / (a | b).sum())
    mean, least = float(np.mean(overlaps)), float(np.min(overlaps))
    return {"difference": float(difference), "iou": mean, "least_iou": least, "geoms": len(overlaps)}


def seen(visual: VisualModel, renderer: Renderer, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Views and the ids of geoms in them."""
    return renderer.render(visual, pixels, pixels), renderer.segment(visual, pixels, pixels)


def draw(shown: Sequence[tuple[str, dict[str, np.ndarray]]], path: Path) -> None:
    """Every scene's views by every way, one way to a row.

    :param shown: scenes by name with their views (V, H, W, 3) by the name of what drew them.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    views = [(f"{scene}: {name}", images) for scene, ways in shown for name, images in ways.items()]
    figure = Figure(figsize=(8, 2.9 * len(views)), layout="constrained")
    for part, (title, images) in zip(figure.subfigures(len(views), squeeze=False)[:, 0], views, strict=True):
        part.suptitle(title, fontsize=9)
        for axes, image in zip(part.subplots(1, len(images), squeeze=False)[0], images, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
    figure.savefig(path, dpi=80)


def _ways(scene: BenchScene) -> dict[str, contextlib.AbstractContextManager[tuple[VisualModel, Renderer]]]:
    found = {
        FULL: _drawn(scene, "full", "gl"),
        "whole meshes": _drawn(scene, "full", "gl", plain=True),
        LIGHT: _drawn(scene, "light", "gl"),
    }
    if importlib.util.find_spec("mujoco_warp") is not None:
        found[TRACED] = _drawn(scene, "light", "warp")
    return found


@contextlib.contextmanager
def _drawn(
    scene: BenchScene, quality: str, backend: str, plain: bool = False
) -> Iterator[tuple[VisualModel, Renderer]]:
    """:param plain: whole meshes, but drawn without multisampling, shadows and reflections."""
    base = scene.env.unwrapped
    visual = VisualModel(base.fullpath, base.model, scene.cameras, quality=quality)
    if plain:
        visual.quality, visual.model.vis.quality.offsamples, visual.key = "light", 0, f"whole meshes of {visual.key}"
    visual.sync(base.model, base.data)
    renderer = make_renderer(backend, "cpu")
    yield visual, renderer
    renderer.close()


def _comparisons(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    named = [
        ("simplified against whole meshes", "whole meshes", LIGHT),
        ("light against full quality, shadows included", FULL, LIGHT),
        ("warp against gl", LIGHT, TRACED),
    ]
    return [comparison for comparison in named if comparison[2] in found]
