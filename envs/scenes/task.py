"""Any registered environment as a scene: its bodies are keypoints, and further cameras are put between its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs import registry
from envs.cameras import CameraSpec, WorkspaceSpec, save_cameras
from envs.errors import UserError, unknown
from envs.multiview import MultiViewObservation
from envs.scenes.footage import Footage

HELD = 8
"""Steps for which a random action is held, so that a body comes away from where it is."""
_MARGIN = np.radians(20.0)
_PLASTIC = 1.32471795724474602596  # of the two-dimensional low-discrepancy sequence R2 (Roberts, 2018)


class FilmedTask:
    """Episodes of an environment, filmed by cameras of our choice.

    Attributes: ``bodies``, K names of those that are keypoints: at first all that have a joint, and those that the task
    is about.

    :param env_id: registered.
    :param cameras: that film.
    :param pixels: height and width of the images.
    :param split: from which configurations episodes are, where the environment has such.
    :raises UserError: for an unknown environment.
    """

    def __init__(self, env_id: str, cameras: Sequence[CameraSpec], pixels: int, split: str = "train") -> None:
        self.env_id, self.env = env_id, _make(env_id, cameras, pixels, split)
        self.bodies = tuple(_jointed(self.env))

    def choose(self, bodies: Sequence[str]) -> None:
        """Say which bodies are keypoints.

        :param bodies: K different names, at least two, since errors are told relative to the box round them.
        :raises UserError: for fewer, an unknown one, or one that is there twice.
        """
        for body in bodies:
            if body not in self.env.body_names:
                raise unknown(f"body of {self.env_id}", body, self.env.body_names)
        twice = [body for number, body in enumerate(bodies) if body in bodies[:number]]
        if twice:
            raise UserError(f"bodies of {self.env_id}: {twice[0]} is named twice")
        if len(bodies) < 2:
            raise UserError(f"bodies of {self.env_id}: at least two must be keypoints, got {len(bodies)}")
        self.bodies = tuple(bodies)

    def bodies_in_sight(self, frames: int = 60, seed: int = 0) -> list[str]:
        """Those of the bodies that are in at least half of all images of some episodes.

        :param frames: that are looked at.
        :param seed: of these episodes.
        """
        shot = self.record(frames, seed, longest=10)
        inverse = np.linalg.inv(shot.rig.world_from_camera)
        local = np.einsum("vij,tkj->tvki", inverse[:, :3, :3], shot.points) + inverse[:, None, :3, 3]
        pixels = np.einsum("vij,tvkj->tvki", shot.rig.intrinsics, local)
        uv = pixels[..., :2] / pixels[..., 2:]
        seen = ((uv >= 0) & (uv <= [shot.rig.width, shot.rig.height])).all(-1) & (pixels[..., 2] > 0)
        return [body for body, share in zip(self.bodies, seen.mean((0, 1)), strict=True) if share >= 0.5]

    def record(self, frames: int, seed: int, longest: int | None = None) -> Footage:
        """Film episodes one after the other, half of them played by the task's script where it has one.

        :param frames: T.
        :param seed: of starts and actions.
        :param longest: steps after which an episode is left for the next; None: played to its end.
        """
        rng = np.random.default_rng([seed, 3])
        scripted = getattr(self.env.unwrapped, "scripted_action", None)
        images, points, step, episode = [], [], 0, 0
        observation, _ = self.env.reset(seed=int(rng.integers(1 << 31)))
        for _ in range(frames):
            images.append(observation["images"])
            points.append(self.env.body_positions(self.bodies))
            if scripted is not None and episode % 2:
                action = scripted()
            elif step % HELD == 0:
                action = rng.uniform(self.env.action_space.low, self.env.action_space.high)
            observation, _, terminated, truncated, _ = self.env.step(np.asarray(action, np.float32))
            step += 1
            if terminated or truncated or step == longest:
                observation, _ = self.env.reset(seed=int(rng.integers(1 << 31)))
                step, episode = 0, episode + 1
        return Footage(np.stack(images), np.stack(points), np.zeros((frames, len(images[0])), bool), self.env.rig)

    def close(self) -> None:
        """Free what was allocated."""
        self.env.close()


def own_cameras(env_id: str) -> tuple[CameraSpec, ...]:
    """The cameras of an environment, which must stand still.

    :raises UserError: where one is mounted on a body, or the environment has none of its own.
    """
    if env_id not in registry.env_ids():
        raise registry.unknown_environment(env_id)
    cameras = tuple(registry.task_class(env_id).cameras)
    moving = [camera.name for camera in cameras if camera.body is not None]
    if moving:
        raise UserError(f"{env_id} cannot be filmed for bootstrapping: its camera '{moving[0]}' moves")
    return cameras


def between(cameras: Sequence[CameraSpec], workspace: WorkspaceSpec, count: int) -> tuple[CameraSpec, ...]:
    """Further cameras among given ones: about as far away, from directions between theirs and a little beyond.

    :param cameras: an environment's own.
    :param workspace: whose centre they look at.
    :param count: how many.
    """
    centre = np.array(workspace.centre)
    ways = np.array([camera.position for camera in cameras]) - centre
    distance = np.linalg.norm(ways, axis=1)
    heading, rise = np.arctan2(ways[:, 1], ways[:, 0]), np.arcsin(ways[:, 2] / distance)
    found = []
    for number in range(1, count + 1):
        share = (0.5 + number / _PLASTIC) % 1, (0.5 + number / _PLASTIC**2) % 1
        azimuth = heading.min() - _MARGIN + share[0] * (np.ptp(heading) + 2 * _MARGIN)
        elevation = rise.min() + share[1] * (np.ptp(rise) + _MARGIN)
        way = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        position = tuple(float(x) for x in centre + distance.mean() * np.array(way))
        fovy = float(np.mean([camera.fovy for camera in cameras]))
        found.append(CameraSpec(f"between-{number}", position, look_at=workspace.centre, fovy=fovy))
    return tuple(found)


def _make(env_id: str, cameras: Sequence[CameraSpec], pixels: int, split: str) -> MultiViewObservation:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cameras.yaml"
        save_cameras(path, cameras)
        return registry.make(env_id, cameras=path, height=pixels, width=pixels, observe=("images",), split=split)


def _jointed(env: MultiViewObservation) -> list[str]:
    """Bodies that have a joint, and those that the task is about, in the order of the model."""
    model = env.unwrapped.model
    jointed = {model.body(index).name for index in range(1, model.nbody) if model.body_jntnum[index]}
    wanted = jointed | set(env.probe_bodies)
    return [name for name in env.body_names if name in wanted]
