"""How far a sweep is: every run with its attempts, as a file that is whole at any time, and an estimate of the rest."""

from __future__ import annotations

import contextlib
import csv
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.provenance import origin
from experiments.sweeps.plan import Plan, PlannedRun
from kp3d_rl.storage.files import write_whole

Status = Literal["done", "running", "waiting", "failed"]
TAIL = 100_000
"""Bytes at the end of a table of numbers in which its last row is."""


@dataclass
class Entry:
    """A run and what became of it.

    :param run: as planned.
    :param total: its steps.
    :param status: "failed" is for good.
    :param attempts: that are over, oldest first: host, seconds, problem (None where there was none).
    :param before: attempts that were over when this sweep began.
    :param place: where it is at work.
    :param steps: that are done.
    :param first: that were done when the attempt under way began.
    """

    run: PlannedRun
    total: int
    status: Status = "waiting"
    attempts: list[dict[str, Any]] = field(default_factory=list)
    before: int = 0
    place: str = ""
    steps: int = 0
    first: int = 0

    @property
    def failures(self) -> int:
        """Attempts of this sweep that failed."""
        return sum(attempt["problem"] is not None for attempt in self.attempts[self.before :])

    @property
    def seconds(self) -> float:
        """That were spent on it, by all attempts whose end was seen."""
        return sum(attempt["seconds"] for attempt in self.attempts)

    def look(self, folder: Path) -> None:
        """Read how far it is and where.

        :param folder: of the files that say where runs are at work.
        """
        self.steps = steps_done(self.run.folder / "metrics.csv")
        place = place_file(folder, self.run)
        if self.status == "waiting" and place.is_file():
            self.status, self.first = "running", self.steps
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it is gone again
                self.place = str(json.loads(place.read_text())["host"])

    def record(self) -> dict[str, Any]:
        """As the sweep's file has it."""
        run = self.run
        named = {"label": run.label, "env": run.env, "encoder": run.encoder, "algorithm": run.algorithm}
        named |= {"override": run.override, "method": run.method, "seed": run.seed, "folder": str(run.folder)}
        return named | {"arguments": run.arguments, "status": self.status, "attempts": self.attempts}


def place_file(folder: Path, run: PlannedRun) -> Path:
    """The file that says where a run is at work.

    :param folder: of the sweep.
    """
    return folder / "at" / f"{run.label.replace('/', ',')}.json"


def steps_done(path: Path) -> int:
    """Environment steps in the last whole row of a run's numbers; 0 where there is none yet.

    :param path: its ``metrics.csv``.
    """
    try:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
            size = path.stat().st_size
            file.seek(max(0, size - TAIL))
            rows = list(csv.reader(file))
        column = header.index("time/total_timesteps")
    except (OSError, ValueError):
        return 0
    for row in reversed(rows):
        if len(row) == len(header) and row[column].replace(".", "", 1).isdigit():
            return int(float(row[column]))
    return 0


def count(entries: Sequence[Entry]) -> dict[Status, int]:
    """Runs by status."""
    return {status: sum(entry.status == status for entry in entries) for status in typing.get_args(Status)}


def seconds_left(entries: Sequence[Entry], slots: int, elapsed: dict[str, float]) -> float | None:
    """How long the rest will take; None where nothing is known yet.

    A run counts as long as those of its method took, or those that are at work would take at their speed.

    :param entries: all runs.
    :param slots: runs that are at work at a time.
    :param elapsed: seconds for which runs have been at work, by label.
    """
    known: dict[str, list[float]] = {}
    for entry in entries:
        if entry.status == "done" and len(entry.attempts) > entry.before:
            known.setdefault(entry.run.method, []).append(entry.seconds)
        elif entry.status == "running" and entry.steps > entry.first and entry.run.label in elapsed:
            speed = (entry.steps - entry.first) / elapsed[entry.run.label]
            known.setdefault(entry.run.method, []).append(entry.total / speed)
    if not known or not slots:
        return None
    anywhere = float(np.mean([seconds for group in known.values() for seconds in group]))
    left, runs = 0.0, 0
    for entry in entries:
        if entry.status in ("waiting", "running"):
            whole = float(np.mean(known.get(entry.run.method, [anywhere])))
            left += whole * (1 - min(1.0, entry.steps / entry.total))
            runs += 1
    return left / max(1, min(slots, runs))


def write_state(plan: Plan, entries: Sequence[Entry], refused: Sequence[str]) -> None:
    """Write how far a sweep is; the file is whole at any time.

    :param plan: the sweep's.
    :param entries: all runs.
    :param refused: why nodes were left out.
    """
    state = {"sweep": plan.name, **origin(), "refused": list(refused), "runs": [entry.record() for entry in entries]}
    write_whole(plan.folder / "sweep.json", (json.dumps(state, indent=1) + "\n").encode())


def read_attempts(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Attempts of an earlier call, by label of run; none where its file is missing or damaged."""
    try:
        runs = json.loads((plan.folder / "sweep.json").read_text())["runs"]
        return {run["label"]: list(run["attempts"]) for run in runs}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
