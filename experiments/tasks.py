"""What the registered tasks are: which cameras see what at the start, and how often a task's own script solves it.

``python -m experiments.tasks`` (``make tasks``) writes ``docs/tasks.json`` and fills the tables of ``docs/tasks.md``.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from envs import registry
from envs.errors import UserError
from envs.visual_model import with_children
from experiments.judging.evaluation import evaluation_seeds
from experiments.options.cli import parse, run_main
from experiments.pages import fill_pages
from experiments.records import record
from experiments.task_table import STARTS, Row

PIXELS = 64
LEAST_PIXELS = 4
"""Of a thing in a view of 64 px, from which on the camera counts as one that sees it."""


@dataclass(frozen=True)
class TasksConfig:
    """Which tasks to look at.

    :param only: environments, separated by commas; by default all that are registered.
    :param docs: folder to write to.
    """

    only: str | None = None
    docs: Path = Path("docs")


def main(argv: Sequence[str]) -> None:
    """Look at each task, play its script, then write what was found."""
    config = parse(TasksConfig, argv)
    config.docs.mkdir(parents=True, exist_ok=True)
    command = f'make tasks ARGS="{shlex.join(argv)}"' if argv else "make tasks"
    for env_id in tqdm(chosen(config.only), unit="task"):
        rows = [{"section": "task", "env": env_id, "command": command} | described(env_id)]
        record(config.docs / "tasks.json", rows, same=("section", "env"))
    fill_pages(config.docs)


def chosen(only: str | None) -> list[str]:
    """The tasks that were asked for.

    :raises UserError: for one that is not registered.
    """
    known = registry.env_ids()
    names = known if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise registry.unknown_environment(name)
    return names


def described(env_id: str) -> Row:
    """All that the table says of a task, on its test configurations.

    :param env_id: registered.
    """
    row: Row = {"seen": seen_at_reset(env_id, "test")}
    paper = getattr(registry.task_class(env_id), "other_cameras", ())
    if paper:
        row["seen_by_others"] = seen_at_reset(env_id, "test", ",".join(camera.name for camera in paper))
    return row | {"starts": STARTS, "pixels": PIXELS, "least_pixels": LEAST_PIXELS} | scripted_success(env_id, "test")


def seen_at_reset(env_id: str, split: str, cameras: str | None = None) -> dict[str, dict[str, int]]:
    """In how many of :data:`STARTS` starts each camera sees each thing that the task is about.

    :param env_id: registered.
    :param split: of its configurations.
    :param cameras: names; None takes the task's own.
    :return: by the name of the body, by that of the camera. Markers, and bodies without a shape, are left out.
    """
    with contextlib.closing(registry.make(env_id, cameras=cameras, height=PIXELS, width=PIXELS, split=split)) as env:
        shapes = _shapes(env)
        counts = {name: np.zeros(len(env.rig.names), int) for name in shapes}
        for seed in evaluation_seeds(0, STARTS):
            env.reset(seed=seed)
            segments = env.segment_views()
            for name, geoms in shapes.items():
                counts[name] += np.isin(segments, geoms).sum((1, 2)) >= LEAST_PIXELS
        names = env.rig.names
    return {thing: dict(zip(names, map(int, count), strict=True)) for thing, count in counts.items()}


def _shapes(env: gym.Env) -> dict[str, np.ndarray]:
    """Ids of the geoms of each probed body and of all that hangs on it."""
    visual = env.get_wrapper_attr("synced_visual")()
    model, markers = visual.model, {marker.name for marker in visual.markers}
    found = {}
    for name in env.get_wrapper_attr("probe_bodies"):
        body = np.zeros(model.nbody, bool)
        body[visual.body_id(name)] = True
        geoms = np.flatnonzero(with_children(model, body)[model.geom_bodyid])
        if len(geoms) and name not in markers:
            found[name] = geoms
    return found


def scripted_success(env_id: str, split: str, episodes: int = STARTS) -> Row:
    """How many episodes the task's own script solves.

    :param env_id: registered.
    :param split: of its configurations.
    :param episodes: how many, of evaluation seeds.
    :return: "episodes", "success_once" and "success_at_end"; nothing for a task without a script.
    """
    with contextlib.closing(registry.make(env_id, observe=("state",), split=split)) as env:
        once = end = 0
        for seed in evaluation_seeds(0, episodes):
            env.reset(seed=seed)
            try:
                solved = _play(env)
            except UserError:
                return {}
            once, end = once + any(solved), end + solved[-1]
    return {"episodes": episodes, "success_once": once, "success_at_end": end}


def _play(env: gym.Env) -> list[bool]:
    """Whether each step of a scripted episode was a success."""
    solved, over = [], False
    while not over:
        *_, terminated, truncated, info = env.step(env.get_wrapper_attr("scripted_action")())
        solved.append(bool(info["is_success"]))
        over = terminated or truncated
    return solved


if __name__ == "__main__":
    run_main(main)
