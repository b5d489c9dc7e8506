"""A KeypointNet run as a video: objects that it never saw turn, with the keypoints of each single image drawn in.

``python -m experiments.video --run runs/<category>/<name>`` comes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envs.cameras import CameraSpec
from envs.renderers import Renderer, make_renderer
from envs.scenes.object_views import DISTANCE, FOVY
from envs.scenes.objects import draw_object
from envs.visual_model import VisualModel
from experiments.keypointnet.filming import TEST_SEED
from experiments.keypointnet.folder import KeypointNetRun
from experiments.mp4 import write_mp4
from experiments.options.cli import parse
from experiments.training.building import choose_device, use_threads
from kp3d_rl.drawing import draw_keypoints, tile
from kp3d_rl.keypointnet.network import KeypointNet
from kp3d_rl.options import bounded, check_options

SECONDS_PER_TURN = 6.0
ELEVATION = np.radians(25.0)
BLOCK = 2
"""Of test objects: other ones than those that numbers come from."""


@dataclass(frozen=True)
class VideoKeypointNetConfig:
    """Unseen objects that turn, with the keypoints that a run finds.

    :param category: "chair", "plane" or "car", whose newest run is taken where no ``run`` is named.
    :param run: run folder, or its name within the category.
    :param seed: number of the first object.
    :param objects: how many, side by side.
    :param device: "auto" takes a GPU where there is one.
    :param fps: frames per second.
    :param size: pixels per side of each picture.
    """

    category: str | None = None
    run: str | None = None
    seed: int = bounded(0, least=0, most=1_000_000)
    objects: int = bounded(3, least=1, most=16)
    device: str = "auto"
    fps: int = bounded(20, least=1, most=120)
    size: int = bounded(320, least=64, most=1024)

    def __post_init__(self) -> None:
        check_options(self, "")


def main(argv: Sequence[str]) -> None:
    """Draw objects from all sides, find keypoints, encode."""
    config = parse(VideoKeypointNetConfig, argv)
    run = KeypointNetRun.find(config.run, config.category)
    network = run.network().to(choose_device(config.device))
    use_threads(run.config.threads)
    path = run.path / "videos" / f"objects-seed{config.seed}.mp4"
    renderer = make_renderer()
    turning = [
        draw(run.config.category, config.seed + number, network, renderer, run.config.image_size, config)
        for number in range(config.objects)
    ]

    def frames() -> Iterator[np.ndarray]:
        for pictures in zip(*turning, strict=True):
            yield tile(pictures)

    write_mp4(path, frames(), config.fps)
    renderer.close()
    print(f"written to {path}")


def draw(
    category: str, number: int, network: KeypointNet, renderer: Renderer, pixels: int, config: VideoKeypointNetConfig
) -> list[np.ndarray]:
    """One turn of an object, with the keypoints that are found in each image by itself.

    :param category: of the object.
    :param number: of the object.
    :param network: that finds them, in images of ``pixels`` per side.
    :param renderer: draws it.
    :param pixels: rows and columns that the network sees.
    :param config: sizes.
    """
    spec = draw_object(category, np.random.default_rng([TEST_SEED + BLOCK, number])).to_mjcf()
    count = round(SECONDS_PER_TURN * config.fps)
    visual = VisualModel(spec, spec.compile(), around(count))
    seen, shown = (renderer.render(visual, side, side) for side in (pixels, config.size))
    uv = network.detect(torch.as_tensor(seen))[0].uv.cpu().numpy() * config.size / pixels
    return [draw_keypoints(image, places) for image, places in zip(shown, uv, strict=True)]


def around(count: int) -> list[CameraSpec]:
    """Cameras on a circle above the object, in order."""
    turns = 2 * np.pi * np.arange(count) / count
    up, out = DISTANCE * np.sin(ELEVATION), DISTANCE * np.cos(ELEVATION)
    return [
        CameraSpec(f"turn-{number}", (out * np.cos(turn), out * np.sin(turn), up), look_at=(0, 0, 0), fovy=FOVY)
        for number, turn in enumerate(turns)
    ]
