"""Which environments there are, and how they are made by name."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from envs.cameras import CameraSpec, WorkspaceSpec, load_cameras
from envs.errors import UserError, unknown

if TYPE_CHECKING:
    from envs.multiview import MultiViewObservation

SPLITS = ("train", "test")
"""Configurations to train on, and those to test on, of tasks that draw from a fixed number of them."""
_TASKS: dict[str, tuple[type[gym.Env], dict[str, Any]]] = {}
_SEEN_BY = ("cameras", "workspace", "horizon")
"""What a task's class must say."""


def register_task(env_id: str, **arguments: Any) -> Callable[[type[gym.Env]], type[gym.Env]]:
    """Class decorator: register a state task, seen from its cameras, under an id, here and in Gymnasium.

    The class has the attributes ``cameras``, ``workspace`` and ``horizon`` (see :class:`envs.tasks.arm.ArmEnv`), maybe
    ``movable``, ``other_cameras``, which are used where they are named, and ``frame_stack``, where motion has to be
    seen. If its scene can be redrawn, it has a method ``redraw(seed)``. If it has a number of configurations of which
    some are kept for tests, it takes an argument ``split``, one of :data:`SPLITS`, and has an attribute of that name.

    :param env_id: what users type.
    :param arguments: with which the class is built, so that one class can be many tasks.
    :raises ValueError: if the id is taken, or the class lacks one of those attributes.
    """

    def register(task: type[gym.Env]) -> type[gym.Env]:
        if env_id in _TASKS:
            raise ValueError(f"environment '{env_id}' is registered twice")
        missing = [name for name in _SEEN_BY if not hasattr(task, name)]
        if missing:
            place = "docs/add-a-task.md says what a task's class needs"
            raise ValueError(f"environment '{env_id}': {task.__name__} has no attribute '{missing[0]}' ({place})")
        _TASKS[env_id] = task, arguments
        gym.register(
            env_id, entry_point="envs.registry:make", kwargs={"env_id": env_id}, max_episode_steps=task.horizon
        )
        return task

    return register


def env_ids() -> list[str]:
    """Ids of the registered tasks, sorted."""
    return sorted(_TASKS)


def task_class(env_id: str) -> type[gym.Env]:
    """The class of a registered task: its attributes say how it is seen.

    :param env_id: one of :func:`env_ids`.
    """
    return _TASKS[env_id][0]


def configurations(env_id: str) -> int | None:
    """How many configurations a task has to be tested in; None where each seed is another start.

    :param env_id: of any environment, registered here or not.
    """
    return getattr(task_class(env_id), "configurations", None) if env_id in env_ids() else None


def make(
    env_id: str,
    *,
    cameras: str | Path | None = None,
    height: int = 64,
    width: int = 64,
    observe: Sequence[str] = ("images", "proprio"),
    renderer: str = "auto",
    quality: str = "light",
    redraw: int | None = None,
    split: str = "train",
    action_repeat: int = 1,
) -> MultiViewObservation:
    """Make an environment that is seen from several cameras.

    :param env_id: one of :func:`env_ids`, or any MuJoCo environment of Gymnasium.
    :param cameras: a cameras file (:func:`envs.cameras.load_cameras`), or names of the task's own cameras, separated by
        commas. None: all of the task's own. A Gymnasium environment needs a file.
    :param height: image height, pixels.
    :param width: image width, pixels.
    :param observe: which of images, proprio, state are observed.
    :param renderer: auto, gl or warp.
    :param quality: light, or full with multisampling, shadows, reflections and whole meshes.
    :param redraw: seed of another scene for the same task: new colours, another start of the arm, and the task's own
        cameras at other places (those of a file stay). None: the task's own scene.
    :param split: "train" or "test": from which configurations episodes are drawn. It makes no difference to a task that
        draws each start anew; there, training and tests have different seeds.
    :param action_repeat: steps of the task that each action is applied for. An episode has as many fewer decisions;
        Gymnasium's own limit, ``spec.max_episode_steps``, counts steps of the task and never comes first.
    :raises UserError: for an unknown environment, camera, observation, renderer or split, a faulty cameras file, or an
        environment that cannot be redrawn.
    """
    from envs.multiview import MultiViewObservation
    from envs.sight import require_sight

    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if env_id in _TASKS:
        task, arguments = _TASKS[env_id]
        env = task(**arguments, split=split) if hasattr(task, "split") else task(**arguments)
        _redraw(env_id, env, redraw)
        specs, workspace = _task_cameras(env_id, env, cameras)
    else:
        if redraw is not None and (env_id in gym.registry or ":" in env_id):
            raise UserError(f"{env_id} cannot be redrawn: it is not a task of this project")
        specs, workspace = _foreign_cameras(env_id, cameras)
        env = _make_foreign(env_id)
    seen = MultiViewObservation(
        env,
        specs,
        height=height,
        width=width,
        observe=observe,
        workspace=workspace,
        renderer=renderer,
        quality=quality,
        movable=getattr(env.unwrapped, "movable", ()),
        frame_stack=getattr(env.unwrapped, "frame_stack", 1),
        action_repeat=action_repeat,
    )
    if cameras is not None and is_cameras_file(cameras):
        require_sight(seen.synced_visual(), seen.workspace)
    return seen


def _redraw(env_id: str, env: gym.Env, seed: int | None) -> None:
    if seed is None:
        return
    if not hasattr(env, "redraw"):
        raise UserError(f"{env_id} cannot be redrawn: its task has no method 'redraw'")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(f"redraw is {seed!r}; it must be a whole number of at least 0")
    env.redraw(int(seed))


def _task_cameras(env_id: str, task: gym.Env, cameras: str | Path | None) -> tuple[Sequence[CameraSpec], WorkspaceSpec]:
    if cameras is None:
        return task.cameras, task.workspace
    if is_cameras_file(cameras):
        specs, workspace = load_cameras(cameras)
        return specs, workspace or task.workspace
    presets = {camera.name: camera for camera in (*task.cameras, *getattr(task, "other_cameras", ()))}
    names = [name.strip() for name in str(cameras).split(",")]
    for name in names:
        if name not in presets:
            raise unknown(f"camera of {env_id}", name, presets)
    return [presets[name] for name in names], task.workspace


def _foreign_cameras(env_id: str, cameras: str | Path | None) -> tuple[Sequence[CameraSpec], WorkspaceSpec | None]:
    if env_id not in gym.registry and ":" not in env_id:  # "module:id" has Gymnasium import the module first
        raise unknown_environment(env_id, _gymnasium_ids())
    if cameras is None:
        raise UserError(f"{env_id} has no cameras of its own: name a cameras file (examples: envs/assets/cameras)")
    if not is_cameras_file(cameras):
        raise UserError(f"{env_id} has no cameras of its own, so '{cameras}' must be a cameras file (.yaml)")
    return load_cameras(cameras)


def _make_foreign(env_id: str) -> gym.Env:
    try:
        return gym.make(env_id, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"environment {env_id} cannot be made: {reason}") from error
    except Exception as error:  # whatever somebody else's code raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"environment {env_id} cannot be made: {reason} ({place.filename}:{place.lineno})") from error


def _gymnasium_ids() -> list[str]:
    """The MuJoCo environments that Gymnasium itself brings and that still run (v4 and later), for suggestions."""
    return sorted(
        env_id
        for env_id, spec in gym.registry.items()
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco") and (spec.version or 0) >= 4
    )


def unknown_environment(env_id: str, others: Sequence[str] = ()) -> UserError:
    """The error for an environment that there is not; of Meta-World's tasks it lists all only to who asks for one.

    :param env_id: what the user typed.
    :param others: ids that are valid beside the registered tasks.
    """
    registered, prefix = env_ids(), "metaworld-"
    theirs = [known for known in registered if known.startswith(prefix)]
    if env_id.startswith(prefix):
        return unknown("environment", env_id, theirs)
    own = [known for known in registered if known not in theirs]
    error = unknown("environment", env_id, [*own, *others, *theirs], [*own, f"{prefix}<task>", *others])
    if re.search(r"-v\d+$", env_id):  # as Gymnasium names them
        return UserError(f"{error} (one that a module registers when it is imported: '<module>:{env_id}')")
    return error


def is_cameras_file(cameras: str | Path) -> bool:
    """Whether cameras are given by a file, and not by names of a task's own."""
    path = Path(cameras)
    return isinstance(cameras, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file()


def task_modules() -> list[str]:
    """Modules that registered a task: what a worker process imports to know the same tasks."""
    return sorted({task.__module__ for task, _ in _TASKS.values()} - {"__main__"})
