"""Every registered task can be trained on, and what docs/tasks.md says of tasks is what is counted."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments import tasks, train
from experiments.task_table import STARTS, table
from experiments.tasks import LEAST_PIXELS, chosen, scripted_success, seen_at_reset
from tests.experiments.conftest import TINY, run_in
from tests.tasks import EIGHT, METAWORLD, OWN

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("env_id", [*OWN, *EIGHT])
def test_keypoints_and_policy_are_trained_on_it(env_id: str, tmp_path: Path) -> None:
    """A few hundred steps from the images to the last checkpoint; what is learnt by then is nothing yet."""
    options = [*TINY, "--total-steps", "256", "--log.evaluate-every", "0", "--log.evaluation-episodes", "1"]
    assert run_in(tmp_path, train.main, ["--env", env_id, "--run", "few", *options]) == 0
    run = tmp_path / "runs" / env_id / "few"
    assert int((run / "checkpoints" / "latest").read_text()) >= 256
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["auxiliary/reconstruction"]) for row in rows if row.get("auxiliary/reconstruction")]
    assert losses and all(map(math.isfinite, losses))


def test_what_a_camera_sees_is_counted_by_the_renderers_segmentation() -> None:
    seen = seen_at_reset("reach-multiview", "train")
    assert seen.keys() == {"target"}, "the end effector is a frame without a shape"
    assert seen["target"].keys() == {"left", "right", "front"} and min(seen["target"].values()) >= 40
    behind = seen_at_reset("metaworld-drawer-open", "train", "paper-1")
    assert behind.keys() == {"hand", "drawer_link"} and behind["hand"].keys() == {"paper-1"}


def test_a_script_is_counted_once_and_at_the_end() -> None:
    found = scripted_success("reach-multiview", "test", episodes=5)
    assert found == {"episodes": 5, "success_once": 5, "success_at_end": 5}


def test_the_table_has_a_row_for_each_task() -> None:
    views = {"left": 50, "right": 50, "top": 49}
    rows = [
        {"env": "metaworld-x", "seen": {"hand": views}, "episodes": 50, "success_once": 9, "success_at_end": 8},
        {"env": "own", "seen": {"target": dict.fromkeys(views, 50)}},
    ]
    assert table(rows)[2:] == [
        "| own | target 50 each | - | - |",
        "| metaworld-x | hand 50, 50, 49 | - | 9, 8 of 50 |",
    ]


def test_the_committed_table_is_of_every_task_and_of_what_is_counted_now() -> None:
    records = {row["env"]: row for row in json.loads((ROOT / "docs" / "tasks.json").read_text())["runs"]}
    assert records.keys() == {*OWN, *METAWORLD}
    assert all((row["starts"], row["least_pixels"]) == (STARTS, LEAST_PIXELS) for row in records.values())
    for env_id in ("reach-multiview", "metaworld-push-wall"):
        for thing, views in seen_at_reset(env_id, "test").items():
            for camera, count in views.items():  # a pixel at an edge may differ from one OpenGL to another
                assert abs(records[env_id]["seen"][thing][camera] - count) <= 2


def test_scripts_solve_the_eight_tasks_of_the_paper() -> None:
    records = {row["env"]: row for row in json.loads((ROOT / "docs" / "tasks.json").read_text())["runs"]}
    assert all(records[env_id]["success_once"] >= 40 for env_id in EIGHT if env_id in records)


def test_only_some_tasks_are_looked_at(tmp_path: Path) -> None:
    assert chosen(None) == sorted([*OWN, *METAWORLD])
    assert chosen("metaworld-push, reach-multiview") == ["metaworld-push", "reach-multiview"]
    with pytest.raises(UserError, match="unknown environment 'reach': did you mean"):
        chosen("reach")
    tasks.main(["--only", "reach-multiview", "--docs", str(tmp_path)])
    (row,) = json.loads((tmp_path / "tasks.json").read_text())["runs"]
    assert row["command"] == f'make tasks ARGS="--only reach-multiview --docs {tmp_path}"'
    assert row["episodes"] == STARTS
