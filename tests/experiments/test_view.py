"""The recording of an episode holds what the policy acted on, and opens with nothing but rerun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.errors import UserError
from experiments import view
from experiments.runs import Run
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env
from experiments.video import Film
from tests.experiments.conftest import run_in

rerun = pytest.importorskip("rerun")


@pytest.fixture(scope="module")
def recording(tiny_run: Path, workplace: Path) -> Path:
    """Of one episode of the tiny run, eight steps long."""
    run_in(workplace, view.main, ["--run", str(tiny_run), "--steps", "8", "--size", "64", "--record-only"])
    return next((tiny_run / "recordings").glob("*.rrd"))


def columns(path: Path, entity: str, component: str) -> list:
    """The values of a component of an entity, moment by moment."""
    from rerun.chunk import RrdReader

    found = {}
    for chunk in RrdReader(path).stream():
        if chunk.entity_path == entity:
            batch = chunk.to_record_batch()
            names = [name for name in batch.schema.names if name.endswith(component)]
            if names and "moment" in batch.schema.names:
                values = zip(batch["moment"].to_pylist(), batch[names[0]].to_pylist(), strict=True)
                found |= {moment: value for moment, value in values if value is not None}
    return [found[moment] for moment in sorted(found)]


def test_keypoints_are_those_that_the_policy_acted_on(recording: Path, opened: Run) -> None:
    env = make_env(opened.config)
    film = Film(env, load_policy(opened, env, opened.load(), "cpu"), view.ViewConfig(steps=8, size=64).video(), {})
    expected = []
    for _ in view.moments(film):
        expected.append(film.said.points[0].numpy().copy())
    env.close()
    found = np.array(columns(recording, "/world/keypoints", "positions"))
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert found.shape == (9, 4, 3)


def test_every_camera_has_its_views_and_the_keypoints_in_them(recording: Path, opened: Run) -> None:
    names = opened.scene().cameras.names
    for name in names:
        entity = f"/world/cameras/{name}/image"
        assert len(columns(recording, entity, "blob")) == 9
        assert np.array(columns(recording, f"{entity}/keypoints", "positions")).shape == (9, 4, 2)
    assert len(columns(recording, "/curves/reward", "scalars")) == 8, "there is none at the reset"


def test_the_viewers_own_program_finds_nothing_wrong_with_it(recording: Path) -> None:
    program = Path(sys.executable).with_name("rerun")
    done = subprocess.run([program, "rrd", "verify", recording], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_has_no_cameras_is_refused(state_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="acts on the simulator's state: it has no cameras"):
        run_in(workplace, view.main, ["--run", str(state_run), "--record-only"])
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match="the viewer is an extra: pip install"):
        view.import_rerun()
    with pytest.raises(ValueError, match="size must lie between 64 and 1024"):
        view.ViewConfig(size=8)


def test_a_window_opens_where_there_is_a_screen(
    tiny_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(view, "open_viewer", opened.append)
    monkeypatch.setattr(view, "has_screen", lambda: True)
    arguments = ["--run", str(tiny_run), "--steps", "1", "--size", "64", "--seed", "3"]
    run_in(workplace, view.main, arguments)
    assert [path.name for path in opened] == ["000000160-seed3.rrd"]
    monkeypatch.setattr(view, "has_screen", lambda: False)
    run_in(workplace, view.main, arguments)
    assert len(opened) == 1 and "open it: " in capsys.readouterr().out
