"""Film a run: ``python -m experiments.video --env reach-multiview [--run PATH]``.

Plays deterministic episodes and writes ``videos/<step>-seed<seed>.mp4`` into the run folder. Each frame shows all
views, rendered large, with the fused keypoints projected into them; below, what the decoder reconstructs from the
keypoints alone; beside, the keypoints in a turning 3D plot and how the episode stands. The policy still sees its own
small images.
Policies without keypoints are filmed too: views and numbers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image, ImageDraw
from stable_baselines3.common.policies import BasePolicy
from tqdm import tqdm

from agents.finite import refuse_nonfinite_outputs
from agents.policies import keypoint_extractor
from experiments.bootstrapping import videos as bootstrapping
from experiments.bootstrapping.folder import asks_for_bootstrap
from experiments.geometry_aware import videos as geometry_aware
from experiments.geometry_aware.folder import asks_for_geometry_aware
from experiments.judging.evaluation import Observation, evaluation_seeds, stack
from experiments.judging.outliers import check_outliers, rejecting_outliers
from experiments.keypointnet import videos as keypointnet
from experiments.keypointnet.folder import asks_for_keypointnet
from experiments.mp4 import write_mp4
from experiments.options.cli import parse, run_main
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env, use_threads
from experiments.training.pictures import overlays, reconstructions
from kp3d_rl.drawing import INK, PAPER, caption, fitting_font, plot3d, resize, tile
from kp3d_rl.keypoint3d import Keypoints

SECONDS_PER_TURN = 18.0
"""Time in which the 3D plot turns once."""
FAINT, GREEN, RED = (128, 132, 148), (24, 140, 72), (190, 60, 60)


@dataclass(frozen=True)
class VideoConfig:
    """Deterministic episodes as an H.264 video.

    :param env: environment; with no ``run`` its newest run is taken.
    :param run: run folder, or its name within the environment.
    :param seed: number of the block of evaluation seeds, as for ``evaluate``, whose first episodes are played.
    :param episodes: how many, one after the other; each gives one frame more than it has steps.
    :param steps: longest episode that is filmed in full, in actions; longer ones are cut.
    :param checkpoint: step of the checkpoint; by default the newest.
    :param device: "auto" takes a GPU where there is one.
    :param reject_outliers: centimetres, as for ``evaluate``; 0: off.
    :param fps: frames, and so actions, per second.
    :param size: pixels per side of every view.
    """

    env: str | None = None
    run: str | None = None
    seed: int = 0
    episodes: int = 4
    steps: int = 400
    checkpoint: int | None = None
    device: str = "auto"
    reject_outliers: float = 0.0
    fps: int = 20
    size: int = 256

    def __post_init__(self) -> None:
        evaluation_seeds(self.seed, self.episodes)  # refuses what is out of bounds
        check_outliers(self.reject_outliers)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 1 <= self.fps <= 120:
            raise ValueError(f"fps must lie between 1 and 120, got {self.fps}")
        if not 64 <= self.size <= 1024:
            raise ValueError(f"size must lie between 64 and 1024 pixels, got {self.size}")


@dataclass(frozen=True)
class Moment:
    """One instant of an episode.

    :param seed: of the episode.
    :param episode: its number, from 1.
    :param step: steps done in it; 0 is the reset.
    :param observation: what the policy sees.
    :param reward: of the last step; None at the reset.
    :param episode_return: sum of rewards up to now.
    :param success: ``info["is_success"]``.
    """

    seed: int
    episode: int
    step: int
    observation: Observation
    reward: float | None
    episode_return: float
    success: bool


@refuse_nonfinite_outputs()
def main(argv: Sequence[str]) -> None:
    """Load, play, draw, encode."""
    if asks_for_bootstrap(argv):
        return bootstrapping.main(argv)
    if asks_for_keypointnet(argv):
        return keypointnet.main(argv)
    if asks_for_geometry_aware(argv):
        return geometry_aware.main(argv)
    config = parse(VideoConfig, argv)
    run = Run.open(config.run, config.env)
    checkpoint = run.load(config.checkpoint)
    use_threads(run.config.threads)
    with contextlib.closing(make_env(run.config)) as env:
        policy = load_policy(run, env, checkpoint, config.device)
        path = run.path / "videos" / f"{checkpoint.step:09d}-seed{config.seed}.mp4"
        film = Film(env, policy, config, {"run": run.path.name, "checkpoint": f"step {checkpoint.step}"})
        with rejecting_outliers(policy, config.reject_outliers):
            write_mp4(path, with_progress(film.frames(), film.longest), config.fps)
    print(path)


class Film:
    """Plays episodes and draws every moment of them.

    :param env: environment of the run.
    :param policy: acts in it.
    :param config: what to play, how large to draw.
    :param title: named texts that stand in every frame.
    """

    def __init__(self, env: gym.Env, policy: BasePolicy, config: VideoConfig, title: dict[str, str]) -> None:
        self.env, self.policy, self.config, self.title = env, policy, config, title
        self.names = env.get_wrapper_attr("rig").names
        horizon = env.get_wrapper_attr("horizon") or config.steps
        self.longest = config.episodes * (min(horizon, config.steps) + 1)
        self.said: Keypoints | None = None  # of the newest moment
        if keypoint_extractor(policy):
            # What is drawn is what the policy acted on: taken as the encoder hands it over, not computed again.
            policy.features_extractor.encoder.register_forward_hook(self._remember)

    def _remember(self, module: torch.nn.Module, seen: Any, said: Keypoints) -> None:
        self.said = said

    def frames(self) -> Iterator[np.ndarray]:
        """(height, width, 3) uint8, all of one size: the reset and every step of every episode."""
        seeds = evaluation_seeds(self.config.seed, self.config.episodes)
        for number, moment in enumerate(self.play(seeds)):
            views = sharp_views(self.env, self.config.size)
            azimuth = 40.0 + 360.0 * number / (SECONDS_PER_TURN * self.config.fps)
            yield self._with_keypoints(moment, views, azimuth) if self.said else self._plain(moment, views)

    def play(self, seeds: Iterable[int]) -> Iterator[Moment]:
        """Every moment of one episode for each seed; the policy has looked at each before it is handed out."""
        for episode, seed in enumerate(seeds, start=1):
            observation, info = self.env.reset(seed=seed)
            reward, total, over = None, 0.0, False
            for step in range(self.config.steps + 1):
                action = self.policy.predict(stack([observation]), deterministic=True)[0][0]
                success = bool(info.get("is_success", False))
                yield Moment(seed, episode, step, observation, reward, total, success)
                if over or step == self.config.steps:
                    break
                observation, reward, terminated, truncated, info = self.env.step(action)
                total, over = total + float(reward), terminated or truncated

    def _with_keypoints(self, moment: Moment, views: list[np.ndarray], azimuth: float) -> np.ndarray:
        """Views over reconstructions; beside them the numbers over the 3D plot."""
        size, keypoints, encoder = self.config.size, self.said, self.policy.features_extractor.encoder
        poses = moment.observation.get("camera_poses")
        poses = None if poses is None else torch.as_tensor(poses[None], device=self.policy.device)
        drawn = overlays(encoder, keypoints, views, poses, pixels=size)
        decoded = [resize(view, size) for view in reconstructions(encoder, self.policy.decoder, keypoints, poses)]
        shown = caption(tile(decoded), "reconstructed from the keypoints alone")
        left = tile([tile(list(map(caption, drawn, self.names))), shown], columns=1, gap=6)
        if encoder.config.dimensions == "2d":  # no depth, so nothing to plot
            return beside(left, text_panel(self.rows(moment), round(1.1 * size), left.shape[0]))
        side = min(round(1.4 * size), left.shape[0])
        plot = plot3d(
            keypoints.points[0].cpu(), keypoints.fused_confidence[0].cpu(), encoder.workspace.to("cpu"), azimuth, side
        )
        panel = text_panel(self.rows(moment), side, left.shape[0] - side)
        return beside(left, np.concatenate([panel, plot]))

    def _plain(self, moment: Moment, views: list[np.ndarray]) -> np.ndarray:
        """Views beside the numbers."""
        left = tile(list(map(caption, views, self.names)))
        return beside(left, text_panel(self.rows(moment), round(1.1 * self.config.size), left.shape[0]))

    def rows(self, moment: Moment) -> list[tuple[str, str, tuple[int, int, int]]]:
        """Name, value and colour of every number that is shown."""
        found = [(name, text, INK) for name, text in self.title.items()]
        horizon = self.env.get_wrapper_attr("horizon")
        found += [
            ("episode", f"{moment.episode} of {self.config.episodes}, seed {moment.seed}", INK),
            ("step", f"{moment.step} of {horizon}" if horizon else str(moment.step), INK),
            ("reward", "-" if moment.reward is None else f"{moment.reward:.3f}", INK),
            ("return", f"{moment.episode_return:.2f}", INK),
        ]
        distance = getattr(self.env.unwrapped, "distance", None)
        if isinstance(distance, float):
            found.append(("distance", f"{100 * distance:.1f} cm", INK))
        if self.env.get_wrapper_attr("defines_success"):
            found.append(("success", *(("yes", GREEN) if moment.success else ("no", RED))))
        return found


def sharp_views(env: gym.Env, size: int) -> list[np.ndarray]:
    """What the cameras see now, (size, size, 3) uint8 each, rendered at twice the size so that edges are smooth.

    :param env: a ``MultiViewObservation``.
    """
    views = env.get_wrapper_attr("render_views")(2 * size, 2 * size)
    return [np.asarray(Image.fromarray(view).reduce(2)) for view in views]


def beside(left: np.ndarray, right: np.ndarray, margin: int = 8) -> np.ndarray:
    """Two pictures of equal height side by side, with a margin around and between them."""
    gap = np.full((left.shape[0], margin, 3), PAPER, np.uint8)
    row = np.concatenate([gap, left, gap, right, gap], axis=1)
    edge = np.full((margin, row.shape[1], 3), PAPER, np.uint8)
    return np.concatenate([edge, row, edge])


def text_panel(rows: Sequence[tuple[str, str, Sequence[int]]], width: int, height: int) -> np.ndarray:
    """A picture of named values, one below the other.

    :param rows: name, value and the value's colour.
    :return: (height, width, 3) uint8.
    """
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, step = ImageDraw.Draw(sheet), min(height / max(len(rows), 1), width / 11)
    size, middle = max(8, round(0.66 * step)), round(0.37 * width)
    for number, (name, value, colour) in enumerate(rows):
        line = round((number + 0.5) * step)
        pen.text((8, line), name, fill=FAINT, font=fitting_font(name, size, middle - 12), anchor="lm")
        font = fitting_font(value, size, width - middle - 8)
        pen.text((middle, line), value, fill=tuple(colour), font=font, anchor="lm")
    return np.asarray(sheet)


def with_progress(frames: Iterator[np.ndarray], total: int) -> Iterator[np.ndarray]:
    """The frames, with a progress bar on a terminal."""
    return iter(tqdm(frames, total=total, unit="frame", leave=False, disable=not sys.stderr.isatty()))


if __name__ == "__main__":
    run_main(main)
