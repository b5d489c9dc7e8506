"""What a KeypointNet run has learnt: rotations between views of objects that it never saw, and a picture of many.

``python -m experiments.evaluate --run runs/<category>/<name>`` comes here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np

from envs.renderers import Renderer, make_renderer
from envs.scenes.meshes import record_catalogues
from experiments.keypointnet.filming import TEST_SEED, as_tensors, film_test, film_training
from experiments.keypointnet.folder import KeypointNetRun
from experiments.options.cli import parse, write_result
from experiments.provenance import origin
from experiments.training.building import choose_device, use_threads
from kp3d_rl.drawing import draw_keypoints, tile
from kp3d_rl.keypointnet.metrics import judge_pairs
from kp3d_rl.keypointnet.network import KeypointNet
from kp3d_rl.keypointnet.training import ViewsOfObjects
from kp3d_rl.options import bounded, check_options
from kp3d_rl.storage.files import write_whole

SHOWN = (4, 8)
"""Rows and columns of objects in the picture."""
_SCALE = 3


@dataclass(frozen=True)
class EvaluateKeypointNetConfig:
    """A KeypointNet run on objects that no training saw.

    :param category: "chair", "plane" or "car", whose newest run is taken where no ``run`` is named.
    :param run: run folder, or its name within the category.
    :param seed: number of the block of objects; blocks never overlap, and runs are judged by block 0 while they learn.
    :param shapes: how many; by default as many as the run was judged by.
    :param device: "auto" takes a GPU where there is one.
    :param seen: judge by the run's own objects, in the views that it learnt from: how well it fits them.
    :param meshes: catalogues of real furniture (.sh3f), separated by commas, whose pieces are judged, too.
    """

    category: str | None = None
    run: str | None = None
    seed: int = bounded(1, least=0, most=1_000_000)
    shapes: int | None = bounded(None, least=1, most=100_000)
    device: str = "auto"
    seen: bool = False
    meshes: str | None = None

    def __post_init__(self) -> None:
        check_options(self, "")


def main(argv: Sequence[str]) -> None:
    """Film, judge, print, draw, write."""
    config = parse(EvaluateKeypointNetConfig, argv)
    run = KeypointNetRun.find(config.run, config.category)
    network = run.network().to(choose_device(config.device))
    use_threads(run.config.threads)
    renderer = make_renderer()
    test = film(run, config, renderer)
    found = judge_pairs(network, test).summary()
    rows = [{"run": run.path.name, "objects": len(test)} | found]
    record = {"category": run.config.category, "seed": config.seed, "objects": len(test), "finished": run.finished}
    record |= origin() | found | {"seen": config.seen}
    write_picture(run.path / "keypoints.png", network, test)
    if config.meshes is not None:
        record["meshes"] = judge_meshes(run, network, config, renderer)
        rows.append({"run": "real meshes"} | record["meshes"])
    renderer.close()
    print("", *table(rows), sep="\n")
    write_result(run.path / "eval.json", json.dumps(record, indent=1).encode())
    print(f"\nwritten to {run.path / 'eval.json'}; pictures are beside it")


def film(run: KeypointNetRun, config: EvaluateKeypointNetConfig, renderer: Renderer) -> ViewsOfObjects:
    """What the run is judged by.

    :param run: whose sizes it has.
    :param config: which objects, and how many.
    :param renderer: draws them.
    """
    count = config.shapes or run.config.test_shapes
    if config.seen:
        return film_training(replace(run.config, shapes=min(count, run.config.shapes)), renderer)
    return film_test(replace(run.config, test_shapes=count), renderer, config.seed)


def judge_meshes(
    run: KeypointNetRun, network: KeypointNet, config: EvaluateKeypointNetConfig, renderer: Renderer
) -> dict[str, Any]:
    """Judge by real furniture, of which nothing was trained on; what cannot be drawn is named.

    :param run: whose network it is.
    :param network: to be judged.
    :param config: names the catalogues.
    :param renderer: draws them.
    """
    paths = [Path(path.strip()) for path in str(config.meshes).split(",")]
    views, drawn, skipped = record_catalogues(
        paths, run.config.category, run.config.views, run.config.image_size, TEST_SEED + config.seed, renderer
    )
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    data = as_tensors(views)
    write_picture(run.path / "meshes.png", network, data)
    found = {"objects": len(data), "skipped": len(skipped), "models": drawn}
    return found | judge_pairs(network, data).summary()


def write_picture(path: Path, network: KeypointNet, data: ViewsOfObjects) -> None:
    """Write :func:`picture`."""
    write_whole(path, iio.imwrite("<bytes>", picture(network, data), extension=".png"))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows in the layout of the paper's Table 1, as a table in Markdown."""
    heads = ("run", "objects", "mean, °", "median, °", "3D-SE", "over 90°", "facing right")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["run"], str(row["objects"]), f"{row['mean_angle']:.1f}", f"{row['median_angle']:.1f}"]
        cells += [f"{row['apart']:.3f}", f"{100 * row['flipped']:.1f} %", f"{100 * row['facing']:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def picture(network: KeypointNet, data: ViewsOfObjects) -> np.ndarray:
    """Many objects with their keypoints, each keypoint in the same colour on all of them."""
    rows, columns = SHOWN
    images = data.images[: rows * columns, 0]
    found, _ = network.detect(images)
    places = found.uv.cpu().numpy()
    drawn = [draw_keypoints(image, uv, None, _SCALE) for image, uv in zip(images.numpy(), places, strict=True)]
    return tile(drawn, columns)
