"""Evidence for the docs comes out of a run folder as it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from envs.errors import UserError
from experiments import evaluate, publish


def test_record_holds_the_runs_own_numbers(tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["--run", str(tiny_run), "--name", "tiny", "--command", "make train", "--docs", str(tmp_path)]
    (tiny_run / "eval.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no complete eval.json"):
        publish.main(arguments)
    assert not list(tmp_path.iterdir())
    evaluate.main(["--run", str(tiny_run), "--episodes", "2", "--envs", "2", "--ablate"])
    publish.main(arguments)
    record = json.loads((tmp_path / "tiny.json").read_text())
    measured = json.loads((tiny_run / "eval.json").read_text())["results"]
    assert record["success_at_end"] == measured["as trained"]["summary"]["success_at_end"]
    assert record["blacked_out_success_at_end"] == measured["blacked out"]["summary"]["success_at_end"]
    assert record["command"] == "make train" and record["seed"] == 0 and "cores" in record["machine"]
    with open(tiny_run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for step, value in record["reconstruction_ratio"]:
        (row,) = [r for r in rows if r["time/total_timesteps"] == str(step) and r["keypoints/reconstruction_ratio"]]
        assert float(row["keypoints/reconstruction_ratio"]) == pytest.approx(value, abs=1e-4)
    assert len(record["reconstruction_ratio"]) == len(record["view_disagreement_cm"]) >= 2 and record["steps"] == 160
    assert (tmp_path / "tiny.png").read_bytes() == sorted((tiny_run / "pictures").glob("*.png"))[-1].read_bytes()
