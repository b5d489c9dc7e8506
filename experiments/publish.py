"""Put a run's evidence into ``docs/``: ``python -m experiments.publish --run PATH --name reach``.

Writes ``docs/<name>.json``, the numbers with command, seed, commit and machine, and ``docs/<name>.png``, the run's last
picture. The README quotes the JSON and a test compares the two.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.cli import parse, run_main
from experiments.runs import Run

SERIES = {
    "reconstruction_ratio": "keypoints/reconstruction_ratio",
    "view_disagreement_cm": "keypoints/view_disagreement_cm",
    "evaluated_success_at_end": "evaluation/success_at_end",
}


@dataclass(frozen=True)
class PublishConfig:
    """Which run, and under which name.

    :param run: run folder; it must have been evaluated with ``--ablate``.
    :param name: of the files in ``docs``.
    :param command: what was typed to train it.
    :param docs: folder to write to.
    """

    run: str
    name: str
    command: str
    docs: Path = Path("docs")


def main(argv: Sequence[str]) -> None:
    """Read the run, write the record, copy the picture."""
    config = parse(PublishConfig, argv)
    run = Run.open(config.run)
    record = {"command": config.command, "seed": run.config.seed} | evaluation(run) | curves(run)
    config.docs.mkdir(exist_ok=True)
    (config.docs / f"{config.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    pictures = sorted((run.path / "pictures").glob("*.png"))
    if pictures:
        shutil.copyfile(pictures[-1], config.docs / f"{config.name}.png")
    print(f"written to {config.docs / config.name}.json")


def evaluation(run: Run) -> dict[str, Any]:
    """Success with intervals, as trained and, where there are views, blacked out; and where that was measured.

    :param run: an evaluated run.
    :raises UserError: if the run has not been evaluated in these conditions.
    """
    path = run.path / "eval.json"
    record = json.loads(path.read_text()) if path.is_file() else {"results": {}}
    needed = {"as trained": "", "blacked out": "blacked_out_"}
    if run.config.encoder.kind == "state":
        needed.pop("blacked out")
    if not needed.keys() <= record["results"].keys():
        raise UserError(f"{run.path} has no complete eval.json: run `make evaluate RUN={run.path} ARGS=--ablate` first")
    wanted = ("success_at_end", "success_once", "return")
    measured = {
        prefix + what: record["results"][name]["summary"][what] for name, prefix in needed.items() for what in wanted
    }
    return {key: record[key] for key in ("commit", "machine")} | measured


def curves(run: Run) -> dict[str, Any]:
    """What was logged over time, as pairs of step and value; ``minutes`` is the wall time of training.

    :param run: a trained run.
    """
    with open(run.path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    step = "time/total_timesteps"
    series = {
        name: [[int(row[step]), round(float(row[column]), 4)] for row in rows if row.get(column) and row.get(step)]
        for name, column in SERIES.items()
    }
    elapsed = [float(row["time/time_elapsed"]) for row in rows if row.get("time/time_elapsed")]
    steps = max((int(row[step]) for row in rows if row.get(step)), default=0)
    return series | {"steps": steps, "minutes": round(max(elapsed, default=0.0) / 60, 1)}


if __name__ == "__main__":
    run_main(main)
