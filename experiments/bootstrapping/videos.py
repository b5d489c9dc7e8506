"""A bootstrapping run as a video: the first and the last detector on one camera, and the triangulated hand turning.

``python -m experiments.video --run runs/hand/<name>`` comes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envs.scenes.footage import Footage
from experiments.bootstrapping.filming import Subject, calibrated, make_studio, to_rig
from experiments.bootstrapping.folder import BootstrapRun
from experiments.mp4 import write_mp4
from experiments.options.cli import parse
from experiments.training.building import choose_device, use_threads
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.cameras import Workspace
from kp3d_rl.drawing import caption, draw_skeleton, plot3d, tile
from kp3d_rl.options import bounded, check_options
from kp3d_rl.triangulation import triangulate_robustly

SECONDS_PER_TURN = 6.0


@dataclass(frozen=True)
class VideoBootstrapConfig:
    """The detectors of a bootstrapping run at work on test sequences.

    :param env: "hand", whose newest run is taken where no ``run`` is named; or an environment.
    :param run: run folder, or its name within the environment.
    :param seed: number of the first test sequence.
    :param sequences: how many, one after the other.
    :param device: "auto" takes a GPU where there is one.
    :param fps: frames per second.
    :param size: pixels per side of each picture.
    """

    env: str | None = None
    run: str | None = None
    seed: int = bounded(0, least=0, most=10_000)
    sequences: int = bounded(2, least=1, most=100)
    device: str = "auto"
    fps: int = bounded(15, least=1, most=120)
    size: int = bounded(384, least=64, most=1024)

    def __post_init__(self) -> None:
        check_options(self, "")


def main(argv: Sequence[str]) -> None:
    """Film test sequences, detect, draw, encode."""
    config = parse(VideoBootstrapConfig, argv)
    run = BootstrapRun.find(config.run, config.env)
    device = choose_device(config.device)
    use_threads(run.config.threads)
    first, last = run.detector(0), run.finished_rounds()[-1]
    detectors = {0: first.to(device), last: run.detector(last).to(device)}
    studio = make_studio(run.config)
    path = run.path / "videos" / f"rounds-seed{config.seed}.mp4"

    def frames() -> Iterator[np.ndarray]:
        for number in range(config.sequences):
            yield from draw(
                run, studio.test(config.seed + number), studio.subject, detectors, len(studio.held_out), config
            )

    write_mp4(path, frames(), config.fps)
    studio.close()
    print(f"written to {path}")


def draw(
    run: BootstrapRun,
    footage: Footage,
    subject: Subject,
    detectors: dict[int, KeypointDetector],
    held_out: int,
    config: VideoBootstrapConfig,
) -> Iterator[np.ndarray]:
    """Frames of one sequence: a held-out view by each detector, and the last one's points in 3D.

    :param run: that is shown.
    :param footage: of a test sequence.
    :param subject: what is looked for.
    :param detectors: by round.
    :param held_out: how many of the views are of cameras that it is judged by; the first is shown.
    :param config: sizes.
    """
    images = torch.as_tensor(footage.images)
    scale = max(1, round(config.size / images.shape[2]))
    views = {}
    for number, detector in detectors.items():
        where, sure = detector.detect(images[:, 0])
        views[number] = torch.where((sure >= run.config.ransac.least_confidence).unsqueeze(-1), where, torch.nan).cpu()
    last = detectors[max(detectors)]
    others = images[:, held_out:]
    uv, confidence = (x.cpu().unflatten(0, others.shape[:2]) for x in last.detect(others.flatten(0, 1)))
    rig = calibrated(to_rig(footage.rig).select(range(held_out, images.shape[1])), run.config.calibration_noise, 0)
    points = triangulate_robustly(rig, uv, confidence, run.config.ransac, subject.groups).points
    box = _box(footage.points)
    for frame in range(len(images)):
        azimuth = 360.0 * frame / (SECONDS_PER_TURN * config.fps)
        pictures = [
            caption(
                draw_skeleton(images[frame, 0].numpy(), found[frame].numpy(), subject.bones, subject.groups, scale),
                f"round {number}, one view",
            )
            for number, found in views.items()
        ]
        side = scale * images.shape[2]
        turning = plot3d(points[frame].numpy(), None, box, azimuth, side, subject.bones, subject.groups)
        yield tile([*pictures, caption(turning, f"round {max(detectors)}, {others.shape[1]} views")])


def _box(points: np.ndarray) -> Workspace:
    """A cube round all that moves through a sequence, points (T, K, 3)."""
    low, high = points.min((0, 1)), points.max((0, 1))
    return Workspace.from_arrays((low + high) / 2, [0.55 * float((high - low).max())] * 3)
