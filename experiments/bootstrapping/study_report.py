"""What the bootstrapping study found: ``docs/bootstrapping.json``, its tables, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bootstrapping.evaluating import views_table
from experiments.bootstrapping.study import MEMBERS, NAME, Job, rows_of
from experiments.records import record
from experiments.studies.plain import report_file

Rows = Sequence[dict[str, Any]]
SHARE = "0.1"
"""Of the box, of the PCK that is drawn."""


def write_report(docs: Path, jobs: Sequence[Job]) -> None:
    """Write what was measured beside what was measured elsewhere, and draw all of it.

    :param docs: folder to write to.
    :param jobs: runs that are judged.
    :raises UserError: where there are none.
    """
    path = report_file(docs, NAME, jobs)
    rows = record(path, rows_of(jobs), same=("section", "condition", "seed"))
    draw(rows, docs / f"{NAME}.png")
    print("\n".join([*rounds_table(rows), "", *counts_table(rows)]))
    print(f"\nwritten to {path}")


def rounds_table(rows: Rows) -> list[str]:
    """Each round of each way to make labels, the mean over seeds; of PCK@.1 each seed, too."""
    heads = "seeds", "round", "PCK@.05", "PCK@.1", "of each seed", "PCK@.2", "AUC", "3D median, mm", "labels right"
    lines = ["| labels by | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for member in MEMBERS:
        for number in sorted({row["round"] for row in _of(rows, member.name)}):
            group = [row for row in _of(rows, member.name) if row["round"] == number]
            at = {share: [100 * row["pck"][share] for row in group] for share in ("0.05", "0.1", "0.2")}
            each = ", ".join(f"{value:.1f}" for value in at["0.1"])
            pck = [f"{np.mean(at['0.05']):.1f}", f"{np.mean(at['0.1']):.1f}", each, f"{np.mean(at['0.2']):.1f}"]
            right = [100 * row["precision"] for row in group if "precision" in row]
            rest = [f"{100 * _mean(group, 'auc'):.1f}", f"{_mean(group, 'error_mm'):.1f}"]
            rest.append(f"{np.mean(right):.1f} %" if right else "–")
            lines.append(f"| {member.name} | " + " | ".join([str(len(group)), str(number), *pck, *rest]) + " |")
    return lines


def counts_table(rows: Rows) -> list[str]:
    """What so many cameras find, with the first detector of each seed, and what learning from it then gains."""
    counted = [row for row in rows if row["section"] == "views"]
    counts = sorted({row["cameras"] for row in counted})
    means = [
        {name: _mean([row for row in counted if row["cameras"] == count], name) for name in _SHARES} for count in counts
    ]
    lines = views_table([{"cameras": count, **mean} for count, mean in zip(counts, means, strict=True)])
    gains = dict(gain_by_cameras(rows))
    ends = ["gain of round 1, points of PCK@.1", "---"]
    ends += [f"{gains[count]:+.1f}" if count in gains else "–" for count in counts]
    return [f"{line} {end} |" for line, end in zip(lines, ends, strict=True)]


def gain_by_cameras(rows: Rows) -> list[tuple[int, float]]:
    """Numbers of cameras, and by how many points PCK@.1 grows from round 0 to round 1.

    It does not grow where round 1 found nothing to learn from. The mean is over those seeds that all numbers of cameras
    have: seeds differ by more than cameras do.
    """
    gains: dict[int, dict[int, float]] = {}
    rounds = {(row["condition"], row["seed"], row["round"]): row for row in rows if row["section"] == "rounds"}
    for (condition, seed, number), row in rounds.items():
        if row["method"] == "bootstrapping" and number == 1:
            before = rounds[condition, seed, 0]
            gains.setdefault(row["cameras"], {})[seed] = 100 * (row["pck"][SHARE] - before["pck"][SHARE])
        elif row["method"] == "bootstrapping" and number == 0 and row.get("gave_up"):
            gains.setdefault(row["cameras"], {})[seed] = 0.0
    common = set.intersection(*(set(of_seeds) for of_seeds in gains.values())) if gains else set()
    means = {
        count: [gain for seed, gain in of_seeds.items() if not common or seed in common]
        for count, of_seeds in gains.items()
    }
    return sorted((count, float(np.mean(values))) for count, values in means.items())


def draw(rows: Rows, path: Path) -> None:
    """PCK over rounds, and what more cameras bring beside the formula.

    :param rows: of the study.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_rounds(left, rows)
    _draw_counts(right, rows)
    figure.savefig(path, dpi=110)


def mean_by_round(series: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean over those seeds that came to a round, for each round that any came to.

    :param series: of each seed, rounds and values.
    """
    values: dict[int, list[float]] = {}
    for number, value in (point for one in series for point in one):
        values.setdefault(number, []).append(value)
    return [(number, float(np.mean(values[number]))) for number in sorted(values)]


def _draw_rounds(axes: Any, rows: Rows) -> None:
    for number, member in enumerate(member for member in MEMBERS if not member.name.endswith("cameras")):
        seeds = sorted({row["seed"] for row in _of(rows, member.name)})
        series = [
            sorted((r["round"], 100 * r["pck"][SHARE]) for r in _of(rows, member.name) if r["seed"] == seed)
            for seed in seeds
        ]
        for one in series:
            axes.plot(*zip(*one, strict=True), color=f"C{number}", alpha=0.3, linewidth=1)
        if series:
            axes.plot(
                *zip(*mean_by_round(series), strict=True),
                "o-",
                color=f"C{number}",
                label=f"{member.name} (n = {len(seeds)})",
            )
    axes.set(xlabel="round", ylabel=f"PCK@{SHARE}, held-out cameras and rooms, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


_SHARES = {
    "success": "a single view is right",
    "formula": "formula: enough of independent views are",
    "enough": "enough views are right",
    "found": "point is found right",
}
_STYLES = {"success": ":", "formula": "--", "enough": "-.", "found": "-"}


def _draw_counts(axes: Any, rows: Rows) -> None:
    counted = [row for row in rows if row["section"] == "views"]
    counts = sorted({row["cameras"] for row in counted})
    for name, label in _SHARES.items():
        values = [100 * _mean([row for row in counted if row["cameras"] == count], name) for count in counts]
        axes.plot(counts, values, _STYLES[name], color="black" if name == "formula" else "C0", label=label)
    axes.set(xlabel="cameras", ylabel="%, with the first detector", xticks=counts, ylim=(0, 100))
    axes.grid(alpha=0.3)
    beside, gains = axes.twinx(), gain_by_cameras(rows)
    beside.plot(*np.array(gains).reshape(-1, 2).T, "s-", color="C3", label="gain of round 1 (right axis)")
    beside.set_ylabel(f"points of PCK@{SHARE}")
    beside.set_ylim(bottom=min([0.0, *(gain for _, gain in gains)]))
    lines = [*axes.get_lines(), *beside.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize="small", loc="lower right")


def _of(rows: Rows, condition: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["section"] == "rounds" and row["condition"] == condition]


def _mean(rows: Rows, name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


TABLES: dict[str, Callable[[Rows], list[str]]] = {"bootstrap-rounds": rounds_table, "bootstrap-cameras": counts_table}
"""Kinds of tables that a page may ask for."""
