"""A run in a 3D viewer: ``python -m experiments.view --env reach-multiview [--run PATH]``.

Plays deterministic episodes and records them for rerun (https://rerun.io): cameras with what they see, keypoints in
space with their trails, the true bodies, the workspace, and curves of reward, confidence and agreement. The file can be
sent to a colleague, who needs nothing but rerun to turn and scrub through it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.finite import refuse_nonfinite_outputs
from agents.scene import Scene
from envs.errors import UserError
from experiments.judging.evaluation import evaluation_seeds
from experiments.options.cli import parse, run_main
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env, use_threads
from experiments.video import Film, Moment, VideoConfig, sharp_views, with_progress
from kp3d_rl.cameras import Rig
from kp3d_rl.drawing import palette
from kp3d_rl.keypoint3d import Keypoints
from kp3d_rl.metrics import view_disagreement

TRAIL = 20
"""Moments that a keypoint's trail goes back."""
RADIUS = 0.012
"""Metres: of the most confident keypoint."""
JPEG = 90


@dataclass(frozen=True)
class ViewConfig:
    """Deterministic episodes as a recording for rerun.

    :param env: environment; with no ``run`` its newest run is taken.
    :param run: run folder, or its name within the environment.
    :param seed: number of the block of evaluation seeds, as for ``evaluate``, whose first episodes are played.
    :param episodes: how many, one after the other.
    :param steps: longest episode that is recorded in full, in actions; longer ones are cut.
    :param checkpoint: step of the checkpoint; by default the newest.
    :param device: "auto" takes a GPU where there is one.
    :param size: pixels per side of every view.
    :param record_only: do not open the viewer, which else happens where there is a screen.
    """

    env: str | None = None
    run: str | None = None
    seed: int = 0
    episodes: int = 1
    steps: int = 400
    checkpoint: int | None = None
    device: str = "auto"
    size: int = 256
    record_only: bool = False

    def __post_init__(self) -> None:
        self.video()  # refuses what is out of bounds

    def video(self) -> VideoConfig:
        """The same for what plays and draws."""
        return VideoConfig(seed=self.seed, episodes=self.episodes, steps=self.steps, size=self.size)


@refuse_nonfinite_outputs()
def main(argv: Sequence[str]) -> None:
    """Load, play, record, open."""
    config = parse(ViewConfig, argv)
    rerun = import_rerun()
    run = Run.open(config.run, config.env)
    checkpoint = run.load(config.checkpoint)
    use_threads(run.config.threads)
    path = run.path / "recordings" / f"{checkpoint.step:09d}-seed{config.seed}.rrd"
    with contextlib.closing(make_env(run.config)) as env:
        if not run.config.encoder.sees:
            raise UserError(f"{run.path} acts on the simulator's state: it has no cameras to look through")
        film = Film(env, load_policy(run, env, checkpoint, config.device), config.video(), {})
        record(rerun, path, film, f"{run.config.env} {run.path.name} {path.stem}")
    print(path)
    if not config.record_only and has_screen():
        open_viewer(path)
    else:
        print(f"open it: {Path(sys.executable).with_name('rerun')} {path}")


def import_rerun() -> Any:
    """The library.

    :raises UserError: where it is not installed.
    """
    try:
        import rerun
    except ImportError:
        raise UserError("the viewer is an extra: pip install -c constraints.txt 'kp3d_rl[view]'") from None
    return rerun


def has_screen() -> bool:
    """Whether a window could be opened here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_viewer(path: Path) -> None:
    """Open a recording in a window that stays when this program ends."""
    subprocess.Popen([Path(sys.executable).with_name("rerun"), path], start_new_session=True)


def record(rerun: Any, path: Path, film: Film, name: str) -> None:
    """Play and write a recording; what stood at its place is replaced when the new one is complete.

    :param rerun: the library.
    :param path: of the recording.
    :param film: plays.
    :param name: of what is shown.
    :raises UserError: where it cannot be written.
    """
    partial = path.with_name(f".{path.stem}.partial.rrd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = rerun.RecordingStream("kp3d_rl", recording_id=name)
        stream.save(partial, default_blueprint=blueprint(rerun, film))
        recorder = Recorder(rerun, stream, film)
        for moment in with_progress(moments(film), film.longest):
            recorder.add(moment)
        stream.flush()
        stream.disconnect()
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def moments(film: Film) -> Iterator[Moment]:
    """Every moment of the episodes that are to be played."""
    return film.play(evaluation_seeds(film.config.seed, film.config.episodes))


def blueprint(rerun: Any, film: Film) -> Any:
    """How the viewer shows it at first: space beside views, curves below.

    :param rerun: the library.
    :param film: of the run.
    """
    from rerun import blueprint as views

    cameras = [views.Spatial2DView(origin=f"world/cameras/{name}/image", name=name) for name in film.names]
    space = views.Spatial3DView(origin="world", name="keypoints in space")
    curves = views.TimeSeriesView(origin="curves", name="curves")
    above = views.Horizontal(space, views.Grid(*cameras, grid_columns=-(-len(cameras) // 3)), column_shares=[3, 1])
    return views.Blueprint(views.Vertical(above, curves, row_shares=[3, 1]), collapse_panels=True)


class Recorder:
    """Writes moments of episodes.

    :param rerun: the library.
    :param stream: that goes to a file.
    :param film: has played the moment that is added.
    """

    def __init__(self, rerun: Any, stream: Any, film: Film) -> None:
        self.rerun, self.stream, self.film, self.number = rerun, stream, film, 0
        scene = Scene.of(film.env)
        self.rig, box = scene.rig.resize(film.config.size, film.config.size), scene.box
        self.bodies = list(film.env.get_wrapper_attr("probe_bodies"))
        self.trails: list[np.ndarray] = []
        self.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        edges = rerun.Boxes3D(centers=[box.centre], half_sizes=[box.half_extents], fill_mode="MajorWireframe")
        self.log("world/workspace", edges, static=True)
        for name, style in {"reward": (70, 120, 170), "return": (35, 140, 60), "success": (200, 60, 60)}.items():
            self.log(f"curves/{name}", rerun.SeriesLines(colors=[style], names=[name]), static=True)

    def log(self, path: str, what: Any, static: bool = False) -> None:
        """Record something at the present moment."""
        self.stream.log(path, what, static=static)

    def add(self, moment: Moment) -> None:
        """Record a moment.

        :param moment: that the policy has just looked at.
        """
        self.stream.set_time("moment", sequence=self.number)
        self.stream.set_time("episode", sequence=moment.episode)
        self.number += 1
        if moment.step == 0:
            self.trails = []
        poses = moment.observation.get("camera_poses")
        rig = self.rig if poses is None else self.rig.with_poses(torch.as_tensor(poses))
        self._add_views(rig)
        self._add_bodies()
        self._add_numbers(moment)
        if self.film.said is not None:
            self._add_keypoints(self.film.said, rig)

    def _add_views(self, rig: Rig) -> None:
        """Cameras, and what they see."""
        rerun, poses = self.rerun, rig.world_from_camera.cpu().numpy()
        for name, view, pose, k in zip(
            self.film.names, sharp_views(self.film.env, self.film.config.size), poses, rig.intrinsics, strict=True
        ):
            place = rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
            size = [self.film.config.size] * 2
            lens = rerun.Pinhole(
                image_from_camera=k.cpu().numpy(), resolution=size, camera_xyz=rerun.ViewCoordinates.RDF,
                image_plane_distance=0.15,
            )  # fmt: skip
            self.log(f"world/cameras/{name}", place)
            self.log(f"world/cameras/{name}/image", lens)
            self.log(f"world/cameras/{name}/image", rerun.Image(view).compress(jpeg_quality=JPEG))

    def _add_bodies(self) -> None:
        """Where the bodies that the task names truly are."""
        if self.bodies:
            positions = self.film.env.get_wrapper_attr("body_positions")(self.bodies)
            shown = self.rerun.Points3D(positions, colors=[(30, 30, 30)], radii=[RADIUS / 2], labels=self.bodies)
            self.log("world/bodies", shown)

    def _add_numbers(self, moment: Moment) -> None:
        """Curves of how the episode goes."""
        numbers = {"return": moment.episode_return, "success": float(moment.success)}
        if moment.reward is not None:
            numbers["reward"] = moment.reward
        for name, value in numbers.items():
            self.log(f"curves/{name}", self.rerun.Scalars(value))

    def _add_keypoints(self, keypoints: Keypoints, rig: Rig) -> None:
        """Keypoints in each view and, where there is depth, in space with their trails."""
        rerun, colours = self.rerun, palette(keypoints.uv.shape[2])
        flat = self.film.policy.features_extractor.encoder.config.dimensions == "2d"
        scale = self.film.config.size / self.film.policy.features_extractor.encoder.height
        uv = (keypoints.uv[0] * scale if flat else rig.project(keypoints.points.cpu())[0][0]).cpu().numpy()
        for name, points in zip(self.film.names, uv, strict=True):
            self.log(f"world/cameras/{name}/image/keypoints", rerun.Points2D(points, colors=colours, radii=[4.0]))
        if flat:
            return
        points, trust = keypoints.points[0].cpu().numpy(), keypoints.fused_confidence[0].cpu().numpy()
        radii = RADIUS * np.sqrt(np.clip(trust / max(float(trust.max()), 1e-9), 0.02, 1.0))
        named = {"labels": [str(number) for number in range(len(points))], "show_labels": False}
        self.log("world/keypoints", rerun.Points3D(points, colors=colours, radii=radii, **named))
        self.trails = [*self.trails[1 - TRAIL :], points]
        if len(self.trails) > 1:
            strips = rerun.LineStrips3D(np.stack(self.trails, 1), colors=colours, radii=[RADIUS / 8])
            self.log("world/trails", strips)
        apart = 100 * float(view_disagreement(keypoints.view_points, keypoints.confidence).mean())
        self.log("curves/views apart, cm", rerun.Scalars(apart))


if __name__ == "__main__":
    run_main(main)
