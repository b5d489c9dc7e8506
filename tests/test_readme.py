"""The README keeps its promises: its script runs, its numbers are those of the committed data, its links exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from envs.cameras import load_cameras
from experiments.pages import filled

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_script_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shortened alone: fewer steps, and a warm-up of seconds."""
    from agents import callbacks

    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert "learn(100_000" in script and "* 8" in script and "n_steps=128" in script
    script = script.replace("100_000", "64").replace("* 8", "* 2").replace("n_steps=128", "n_steps=16, batch_size=16")
    script = script.replace("n_steps=16", "n_epochs=1, n_steps=16")
    short = callbacks.AuxiliaryConfig(warmup_frames=16, warmup_steps=1)
    monkeypatch.setattr(callbacks, "AuxiliaryConfig", lambda: short)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(script, "README.md", "exec"), names)
    assert names["model"].num_timesteps >= 48 and names["model"].policy.auxiliary.calls > 1


def test_the_task_to_copy_is_one() -> None:
    """In a process of its own, since a task stays registered."""
    text = (ROOT / "docs" / "add-a-task.md").read_text()
    block = textwrap.dedent(re.search(r"   ```python\n(.*?)   ```", text, re.DOTALL)[1])
    tried = """
from gymnasium.utils.env_checker import check_env
from envs.registry import make

env = make("touch-multiview", observe=("images", "proprio", "state"))
check_env(env.unwrapped, skip_render_check=True)
assert env.reset(seed=0)[0]["images"].shape == (3, 64, 64, 3)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block + tried], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_cameras_file_to_copy_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "add-a-task.md").read_text(), re.DOTALL)
    (tmp_path / "cameras.yaml").write_text(block)
    cameras, workspace = load_cameras(tmp_path / "cameras.yaml")
    assert [camera.body for camera in cameras] == [None, None, "hand", "torso"] and workspace.half_extents[2] == 0.05


def test_links_and_pictures_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_tables_are_those_of_the_committed_data(page: str) -> None:
    """Every table is what the committed records make of it; they name command, seed, commit and machine."""
    text = (ROOT / page).read_text()
    assert filled(text, ROOT / "docs") == text
    assert "-->\n<!-- end -->" not in text  # no table is empty


def test_records_say_where_they_come_from() -> None:
    for path in (ROOT / "docs").glob("*.json"):
        data = json.loads(path.read_text())
        of_a_study = set() if data["study"] in ("bench", "soak", "tasks") else {"condition", "seed"}
        for record in data["runs"]:
            assert {"command", "commit", "machine"} | of_a_study <= record.keys(), path
