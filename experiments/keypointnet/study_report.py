"""What the KeypointNet study found: ``docs/keypointnet.json``, its table, and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.scenes.objects import CATEGORIES
from experiments.keypointnet.study import MEMBERS, NAME, Job, rows_of
from experiments.records import record
from experiments.studies.plain import report_file

Rows = Sequence[dict[str, Any]]
PAPER = {
    "car": (11.310, 3.372, 0.171),
    "plane": (17.330, 5.721, 0.230),
    "chair": (14.572, 5.420, 0.196),
    "car supervised": (16.268, 5.583, 0.240),
    "plane supervised": (18.350, 7.168, 0.233),
    "chair supervised": (21.882, 8.771, 0.269),
}
"""Mean and median angle, and 3D-SE, of the paper's Table 1: ShapeNet's objects, 128 px, 200,000 steps of 256 pairs."""


def write_report(docs: Path, jobs: Sequence[Job]) -> None:
    """Write what was measured beside what was measured elsewhere, and draw all of it.

    :param docs: folder to write to.
    :param jobs: runs that are judged.
    :raises UserError: where there are none.
    """
    path = report_file(docs, NAME, jobs)
    rows = record(path, rows_of(jobs), same=("section", "condition", "seed"))
    draw(rows, docs / f"{NAME}.png")
    for job in jobs:
        if job.member.name in CATEGORIES and job.seed == 0:
            shutil.copyfile(job.folder / "keypoints.png", docs / f"{NAME}-{job.home}.png")
    print("\n".join(results_table(rows)))
    print(f"\nwritten to {path}")


def results_table(rows: Rows) -> list[str]:
    """Means over seeds in the layout of the paper's Table 1, and its own numbers, of other data, beside them."""
    heads = ("", "seeds", "steps", "minutes", "mean, °", "median, °", "3D-SE", "over 90°", "facing right", "spread")
    lines = ["| " + " | ".join([*heads, "paper: mean, median, 3D-SE"]) + " |", "|---" * (len(heads) + 1) + "|"]
    for member in MEMBERS:
        group = [row for row in rows if row["condition"] == member.name]
        if not group:
            continue
        mean = {name: float(np.mean([row[name] for row in group])) for name in _NUMBERS}
        cells = [member.name, str(len(group)), f"{group[0]['steps']:,}", f"{mean['minutes']:.0f}"]
        cells += [f"{mean['mean_angle']:.1f}", f"{mean['median_angle']:.1f}", f"{mean['apart']:.3f}"]
        cells += [f"{100 * mean['flipped']:.1f} %", f"{100 * mean['facing']:.1f} %", f"{mean['spread']:.2f}"]
        theirs = PAPER.get(member.name)
        cells.append("{:.1f}, {:.1f}, {:.3f}".format(*theirs) if theirs else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


_NUMBERS = ("minutes", "mean_angle", "median_angle", "apart", "flipped", "facing", "spread")


def draw(rows: Rows, path: Path) -> None:
    """Median rotation error over steps, a panel for each category.

    :param rows: of the study.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, category in zip(figure.subplots(1, len(CATEGORIES), sharey=True), CATEGORIES, strict=True):
        for number, member in enumerate(m for m in MEMBERS if m.name.partition(" ")[0] == category):
            label = {category: "KeypointNet"}.get(member.name, member.name.removeprefix(f"{category} "))
            for row in (row for row in rows if row["condition"] == member.name):
                axes.plot(*np.array(row["curve"]).T, "o-", color=f"C{number}", label=label, markersize=3)
                label = "_"  # once in the legend
        axes.set(title=category, xlabel="steps", yscale="log")
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
    figure.axes[0].set_ylabel("median rotation error, unseen objects, °")
    figure.savefig(path, dpi=110)


TABLES: dict[str, Callable[[Rows], list[str]]] = {"keypointnet": results_table}
"""Kinds of tables that a page may ask for."""
