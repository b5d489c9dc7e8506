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


@pytest.mark.parametrize("kind", ["keypoints", "state"])
def test_numbers_are_those_of_the_committed_runs(kind: str) -> None:
    """Every figure of the table stands in the committed record, which names command, seed, commit and machine."""
    record = json.loads((ROOT / "docs" / f"reach-{kind}.json").read_text())
    assert {"command", "seed", "commit", "machine"} <= record.keys()
    (row,) = re.findall(rf"^\| {kind} .*$", TEXT, re.MULTILINE)

    def success(name: str) -> str:
        entry = record[name]
        low, high = (round(100 * bound) for bound in entry["interval"])
        return f"{entry['k']}/{entry['n']} ({low} to {high} %)"

    values = [success("success_at_end"), f"{record['steps']:,}", f"{record['minutes']:.0f} min"]
    if kind == "keypoints":
        (_, ratio_before), *_, (_, ratio) = record["reconstruction_ratio"]
        (_, apart_before), *_, (_, apart) = record["view_disagreement_cm"]
        values += [success("blacked_out_success_at_end"), f"{ratio_before:.2f} → {ratio:.2f}"]
        values += [f"{apart_before:.1f} → {apart:.1f}"]
        assert ratio < 0.5 and apart < apart_before
    for value in values:
        assert value in row, (value, row)
