"""The README keeps its promises: its script runs, its numbers are those of the committed data, its links exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

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


def test_links_and_pictures_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_numbers_are_those_of_the_committed_run() -> None:
    """Every figure of the results table stands in docs/reach.json, which names command, seed and machine."""
    record = json.loads((ROOT / "docs" / "reach.json").read_text())
    assert {"command", "seed", "commit", "machine", "minutes"} <= record.keys()
    (row,) = re.findall(r"^\| keypoints .*$", TEXT, re.MULTILINE)
    for value in (
        f"{record['success_at_end']['k']}/{record['success_at_end']['n']}",
        f"{record['blacked_out']['k']}/{record['blacked_out']['n']}",
        f"{record['reconstruction_ratio'][-1]:.2f}",
        f"{record['view_disagreement_cm'][-1]:.1f}",
        f"{record['minutes']:.0f}",
    ):
        assert value in row, (value, row)
