"""A geometry-aware run as a video: a skeleton in one view, drawn as cameras all round would see it, and its pose in 3D.

``python -m experiments.video --run runs/human/<name>`` comes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.errors import UserError
from envs.renderers import make_renderer
from envs.scenes.clips import TEST
from envs.scenes.human import LIMBS, SIDES
from envs.scenes.people import EXTENT, People, play_people, ring
from experiments.geometry_aware.__main__ import eyes_of
from experiments.geometry_aware.evaluating import REGRESSOR, load_regressor
from experiments.geometry_aware.folder import GeometryAwareRun
from experiments.geometry_aware.pictures import coloured, drawn
from experiments.geometry_aware.seeing import TEST_SEED, one_view, read
from experiments.mp4 import write_mp4
from experiments.options.cli import parse
from experiments.runs.plain import read_tensors
from experiments.training.building import choose_device, use_threads
from kp3d_rl.cameras import Workspace
from kp3d_rl.drawing import PAPER, caption, plot3d, resize, tile
from kp3d_rl.geometry_aware.network import GeometryAwareNetwork
from kp3d_rl.geometry_aware.skeleton import SkeletonViews
from kp3d_rl.options import bounded, check_options

BLOCK = 2
"""Of test bodies: other ones than those that numbers come from."""
ROUND = 8
"""Cameras that views are drawn for."""
SECONDS_PER_TURN = 8.0


@dataclass(frozen=True)
class VideoGeometryAwareConfig:
    """A test clip, seen by one held-out camera; views of other cameras, and the pose in 3D beside the true one.

    :param env: "human", whose newest run is taken where no ``run`` is named.
    :param run: run folder, or its name.
    :param seed: number of the body.
    :param clip: name of a test clip.
    :param device: "auto" takes a GPU where there is one.
    :param fps: frames per second.
    :param size: pixels per side of the source's picture.
    """

    env: str | None = None
    run: str | None = None
    seed: int = bounded(0, least=0, most=100_000)
    clip: str = "kick"
    device: str = "auto"
    fps: int = bounded(20, least=1, most=120)
    size: int = bounded(256, least=64, most=1024)

    def __post_init__(self) -> None:
        check_options(self, "")


def main(argv: Sequence[str]) -> None:
    """See a clip, draw it from all sides, tell its pose, encode."""
    config = parse(VideoGeometryAwareConfig, argv)
    run = GeometryAwareRun.find(config.run, config.env)
    use_threads(run.config.threads)
    people = played(config)
    source = seen(run, people)
    network = run.network("synthesis")[0].to(choose_device(config.device))  # type: ignore[index]
    assert isinstance(network, GeometryAwareNetwork)
    views = drawn_round(network, source)
    poses = estimated(run, network, source)
    path = run.path / "videos" / f"{config.clip}-seed{config.seed}.mp4"
    write_mp4(
        path, frames(network.maps(source.uv[:, 0].cpu()), views, poses, source.joints.numpy(), config), config.fps
    )
    print(f"written to {path}")


def played(config: VideoGeometryAwareConfig) -> People:
    """The clip's frames in order, by one body, that keeps looking the same way.

    :raises UserError: for a clip that is no test clip.
    """
    if config.clip not in TEST:
        raise UserError(f"clip must be one that is not learnt from ({', '.join(TEST)}), got '{config.clip}'")
    (clip,) = read((config.clip,))
    return play_people([clip], len(clip), 1, TEST_SEED + BLOCK + config.seed, turning=False)


def seen(run: GeometryAwareRun, people: People) -> SkeletonViews:
    """What the first held-out camera sees of them."""
    renderer = make_renderer() if run.config.source == "detector" else None
    _, held_out = ring(run.config.cameras, run.config.held_out)
    views = eyes_of(run, renderer).views(people, held_out, BLOCK)
    if renderer is not None:
        renderer.close()
    return one_view(views, 0)


def drawn_round(network: GeometryAwareNetwork, source: SkeletonViews) -> Tensor:
    """Maps as cameras round the person would see them.

    :param network: that draws.
    :param source: N poses in one view.
    :return: (N, ROUND, L, size, size), from the source's side on.
    """
    found = []
    for turn in np.arange(ROUND) * 2 * np.pi / ROUND:
        about = torch.tensor([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1.0]])
        found.append(drawn(network, source, about.float() @ source.rotations[:, 0]))
    return torch.stack(found, 1)


@torch.no_grad()
def estimated(run: GeometryAwareRun, network: GeometryAwareNetwork, source: SkeletonViews) -> np.ndarray:
    """(N, J, 3) poses in world axes, as the regressor tells them from the points.

    :raises UserError: where no evaluation has fitted one yet.
    """
    path = run.path / REGRESSOR
    if not path.is_file():
        raise UserError(f"{run.path} has no regressor yet: `make evaluate RUN={run.path}` fits one")
    try:
        fitted = load_regressor(run, read_tensors(path))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} holds no regressor of this run: {str(error).splitlines()[0]}") from None
    inside = fitted(network.codes(source.uv[:, 0]).flatten(1))
    return (inside @ source.rotations[:, 0].mT).numpy()


def frames(
    maps: Tensor, views: Tensor, poses: np.ndarray, truth: np.ndarray, config: VideoGeometryAwareConfig
) -> Iterator[np.ndarray]:
    """Pictures, one for each pose.

    :param maps: (N, L, size, size) of the source.
    :param views: (N, ROUND, L, size, size) that were drawn from them.
    :param poses: (N, J, 3) estimated.
    :param truth: (N, J, 3).
    :param config: sizes.
    """
    half = torch.full((3,), 0.4 * EXTENT)
    box = Workspace(torch.zeros(3), half)
    side = config.size // 2
    for number in range(len(maps)):
        source = caption(resize(coloured(maps[number]), config.size), "one view")
        around = [resize(coloured(view), side) for view in views[number]]
        rounded = caption(tile(around, ROUND // 2), "drawn from it, all round")
        azimuth = 360.0 * number / (SECONDS_PER_TURN * config.fps)
        solid = [
            caption(plot3d(pose, None, box, azimuth, config.size, LIMBS, SIDES), title)
            for pose, title in ((poses[number], "pose in 3D, estimated"), (truth[number], "true"))
        ]
        yield joined([source, rounded, *solid])


def joined(pictures: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """Pictures side by side, each as wide as it is."""
    height = max(picture.shape[0] for picture in pictures)
    columns = []
    for picture in pictures:
        room = np.full((height, picture.shape[1] + gap, 3), PAPER, np.uint8)
        room[: picture.shape[0], : picture.shape[1]] = picture
        columns.append(room)
    return np.concatenate(columns, 1)
