"""What the geometry-aware study found: ``docs/geometry-aware.json``, its tables, and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.geometry_aware.evaluating import draw, table
from experiments.geometry_aware.study import MEMBERS, NAME, Job, rows_of
from experiments.records import record
from experiments.studies.plain import report_file

Rows = Sequence[dict[str, Any]]


def write_report(docs: Path, jobs: Sequence[Job]) -> None:
    """Write what was measured beside what was measured elsewhere, and draw it.

    :param docs: folder to write to.
    :param jobs: runs that are judged.
    :raises UserError: where there are none.
    """
    path = report_file(docs, NAME, jobs)
    rows = record(path, rows_of(jobs), same=("section", "condition", "seed"))
    if found := fits(rows, MEMBERS[0].name):
        draw(found, docs / f"{NAME}.png")
    for job in jobs:
        if job.seed == 0 and (job.folder / "views.png").is_file():
            shutil.copyfile(job.folder / "views.png", docs / f"{NAME}-views-{job.member.name.replace(' ', '-')}.png")
    print("\n".join([*exact_table(rows), "", *synthesis_table(rows)]))
    print(f"\nwritten to {path}")


def fits(rows: Rows, condition: str) -> list[dict[str, Any]]:
    """All fits of all seeds of a condition."""
    return [fit for row in rows if row["condition"] == condition for fit in row["rows"]]


def exact_table(rows: Rows) -> list[str]:
    """Errors of poses by exact joints with noise, all seeds together."""
    return errors_table(rows, "exact joints")


def detected_table(rows: Rows) -> list[str]:
    """Errors of poses by the detector's joints."""
    return errors_table(rows, "detected joints")


def errors_table(rows: Rows, condition: str) -> list[str]:
    """Errors of poses in a condition, all seeds together."""
    found = fits(rows, condition)
    return table(found) if found else [f"Of {condition} no run is judged yet."]


def synthesis_table(rows: Rows) -> list[str]:
    """How well views are drawn, and the error from 1 % and all labels, by condition: means over seeds."""
    heads = ("", "seeds", "steps", "minutes", "IoU", "IoU to the ring's", "IoU, wrong rotation", "points apart")
    lines = ["| " + " | ".join([*heads, "MPJPE, 1 % of labels", "100 %"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for member in MEMBERS:
        group = [row for row in rows if row["condition"] == member.name]
        if not group:
            continue
        pairs = [list(row["synthesis"].values()) for row in group]
        overlaps = np.mean([[pair["iou"] for pair in each] for each in pairs], 0)
        apart = np.mean([each[0]["equivariance"] for each in pairs])
        cells = [
            member.name,
            str(len(group)),
            f"{group[0]['steps']:,}",
            f"{np.mean([r['minutes'] for r in group]):.0f}",
        ]
        cells += [*(f"{100 * overlap:.1f} %" for overlap in overlaps), f"{apart:.3f}"]
        cells += [f"{mean_error(group, fraction):.1f} mm" for fraction in (0.01, 1.0)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def mean_error(rows: Rows, fraction: float) -> float:
    """Mean MPJPE of the small regressor on points."""
    found = [fit for row in rows for fit in row["rows"]]
    chosen = [f["mpjpe"] for f in found if f["method"] == "geometry-aware" and f["fraction"] == fraction]
    return float(np.mean(chosen))


TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "geometry-aware-exact": exact_table,
    "geometry-aware-detected": detected_table,
    "geometry-aware-views": synthesis_table,
}
"""Kinds of tables that a page may ask for."""
