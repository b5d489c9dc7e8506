"""Which environments there are, and how they are made by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym

from envs.cameras import CameraSpec, WorkspaceSpec, load_cameras
from envs.errors import UserError, unknown

_CAMERA_FILE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Task:
    """A registered task: how to make its state environment, and what is observed unless asked otherwise."""

    make: Callable[[], gym.Env]
    observe: tuple[str, ...]


_TASKS: dict[str, Task] = {}


def register_task(env_id: str, observe: Sequence[str] = ("images", "proprio")) -> Callable[[type], type]:
    """Class decorator: register a state task under an id, here and in Gymnasium.

    The class has the attributes ``cameras``, ``workspace``, ``movable`` and ``horizon``
    (see :class:`envs.tasks.arm.ArmEnv`).

    :param env_id: what users type.
    :param observe: what is observed unless :func:`make` is told otherwise.
    :raises ValueError: if the id is taken.
    """

    def register(task: type) -> type:
        if env_id in _TASKS:
            raise ValueError(f"environment '{env_id}' is registered twice")
        _TASKS[env_id] = Task(task, tuple(observe))
        gym.register(env_id, entry_point=partial(make, env_id), max_episode_steps=task.horizon)
        return task

    return register


def env_ids() -> list[str]:
    """Ids of our own tasks, sorted."""
    return sorted(_TASKS)


def make(
    env_id: str,
    *,
    cameras: str | Path | None = None,
    height: int = 64,
    width: int = 64,
    observe: Sequence[str] | None = None,
    renderer: str = "auto",
):
    """Make an environment that is seen from several cameras.

    :param env_id: one of :func:`env_ids`, or any MuJoCo environment of Gymnasium.
    :param cameras: a cameras file (:func:`envs.cameras.load_cameras`), or names of the task's own cameras, separated by
        commas. None: all of the task's own. A Gymnasium environment needs a file.
    :param height: image height, pixels.
    :param width: image width, pixels.
    :param observe: which of images, proprio, state are observed; None: what the task was registered with.
    :param renderer: auto, gl or warp.
    :return: :class:`envs.multiview.MultiViewObservation`.
    :raises UserError: for an unknown environment, camera, observation or renderer, or a faulty cameras file.
    """
    from envs.multiview import MultiViewObservation

    task = _TASKS.get(env_id)
    if task is None:
        env = _make_foreign(env_id, cameras)
        specs, workspace = load_cameras(cameras)
        observe = observe or ("images", "proprio")
    else:
        env = task.make()
        specs, workspace = _task_cameras(env_id, env, cameras)
        observe = observe or task.observe
    return MultiViewObservation(
        env,
        specs,
        height=height,
        width=width,
        observe=observe,
        workspace=workspace,
        renderer=renderer,
        movable=getattr(env.unwrapped, "movable", ()),
    )


def _task_cameras(
    env_id: str, env: gym.Env, cameras: str | Path | None
) -> tuple[Sequence[CameraSpec], WorkspaceSpec]:
    if cameras is None:
        return env.cameras, env.workspace
    if _is_file(cameras):
        specs, workspace = load_cameras(cameras)
        return specs, workspace or env.workspace
    presets = {camera.name: camera for camera in env.cameras}
    names = [name.strip() for name in str(cameras).split(",")]
    for name in names:
        if name not in presets:
            raise unknown(f"camera of {env_id}", name, presets)
    return [presets[name] for name in names], env.workspace


def _make_foreign(env_id: str, cameras: str | Path | None) -> gym.Env:
    ids = _gymnasium_ids()
    if env_id not in ids:
        raise unknown("environment", env_id, [*env_ids(), *ids])
    if cameras is None:
        raise UserError(f"{env_id} has no cameras of its own: name a cameras file (see envs/assets/cameras for examples)")
    if not _is_file(cameras):
        raise UserError(f"{env_id} has no cameras of its own, so '{cameras}' must be a cameras file (.yaml)")
    return gym.make(env_id, disable_env_checker=True)


def _gymnasium_ids() -> list[str]:
    """Gymnasium's MuJoCo environments that need nothing that is not installed (v4 and later)."""
    ids = []
    for env_id, spec in gym.registry.items():
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium.envs.mujoco"):
            if spec.version is not None and spec.version >= 4:
                ids.append(env_id)
    return sorted(ids)


def _is_file(cameras: str | Path) -> bool:
    path = Path(cameras)
    return isinstance(cameras, Path) or path.suffix in _CAMERA_FILE_SUFFIXES or len(path.parts) > 1 or path.is_file()
