"""Benchmarks as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
OVER_TIME = "memory-over-time"


def views_table(rows: Rows) -> list[str]:
    """Views per second of every renderer."""
    rows = [row for row in rows if row["section"] == "views"]
    heads = ("device", "scene", "renderer", "ms for all views", "views/s", "times Gymnasium's defaults")
    return table_of(
        heads,
        [
            (
                row["device"],
                row["scene"],
                row["what"],
                f"{row['milliseconds']:.1f}",
                f"{row['views_per_second']:.0f}",
                _times(row, "times_defaults"),
            )
            for row in rows
        ],
    )


def looks_table(rows: Rows) -> list[str]:
    """How far light views are from what the task's file asks for, and the ray tracer from OpenGL."""
    heads = ("device", "scene", "compared", "mean difference, of 255", "IoU of geoms, mean", "least", "geoms")
    return table_of(
        heads,
        [
            (
                row["device"],
                row["scene"],
                row["what"],
                f"{row['difference']:.1f}",
                f"{row['iou']:.3f}",
                f"{row['least_iou']:.2f}",
                str(row["geoms"]),
            )
            for row in rows
            if row["section"] == "looks"
        ],
    )


def workers_table(rows: Rows) -> list[str]:
    """Views per second of one and more worker processes."""
    rows = [row for row in rows if row["section"] == "workers"]
    return table_of(
        ("device", "processes", "views/s", "times one"),
        [(row["device"], row["what"], f"{row['views_per_second']:.0f}", _times(row)) for row in rows],
    )


def nodes_table(rows: Rows) -> list[str]:
    """Environment steps per second of one and two ray nodes."""
    rows = [row for row in rows if row["section"] == "nodes"]
    return table_of(
        ("device", "scene", "nodes", "environment steps/s", "times one"),
        [(row["device"], row["scene"], row["what"], f"{row['steps_per_second']:.0f}", _times(row)) for row in rows],
    )


def learner_table(rows: Rows) -> list[str]:
    """Auxiliary steps per second of both formulations."""
    rows = [row for row in rows if row["section"] == "learner"]
    return table_of(
        ("device", "network", "ms a step", "steps/s", "times the original's"),
        [
            (row["device"], row["what"], f"{row['milliseconds']:.0f}", f"{row['steps_per_second']:.2f}", _times(row))
            for row in rows
        ],
    )


def triangulation_table(rows: Rows) -> list[str]:
    """Robust triangulation of both kinds."""
    heads = ("device", "triangulation", "points timed", "points/s", "times the loop", "found, %", "answers apart, m")
    return table_of(
        heads,
        [
            (
                row["device"],
                row["what"],
                f"{row['points']:,}",
                f"{row['points_per_second']:,.0f}",
                _times(row),
                f"{100 * row['recall']:.2f}",
                f"{row['apart']:.0e}",
            )
            for row in rows
            if row["section"] == "triangulation"
        ],
    )


def training_table(rows: Rows) -> list[str]:
    """Environment steps per second of whole training."""
    rows = [row for row in rows if row["section"] == "training"]
    return table_of(
        ("device", "stack", "environment steps/s", "times naive"),
        [(row["device"], row["what"], f"{row['steps_per_second']:.1f}", _times(row)) for row in rows],
    )


def stages_table(rows: Rows) -> list[str]:
    """Share of each stage in every stack."""
    rows = [row for row in rows if row["section"] == "training"]
    stages = list(dict.fromkeys(stage for row in reversed(rows) for stage in row["shares"]))
    short = [f"{row['what'].partition(':')[0]} ({row['device']})" for row in rows]
    return table_of(
        ("stage, share of the time", *short),
        [(stage, *(f"{100 * row['shares'].get(stage, 0):.0f} %" for row in rows)) for stage in stages],
    )


def growth_table(rows: Rows) -> list[str]:
    """How speed goes with sizes."""
    rows = [row for row in rows if row["section"] == "growth"]
    return table_of(
        ("device", "unit", "varied", "value", "units/s"),
        [
            (row["device"], row["unit"], row["varied"], str(row["value"]), f"{row['steps_per_second']:.1f}")
            for row in rows
        ],
    )


def memory_table(rows: Rows) -> list[str]:
    """What is held in memory."""
    rows = [row for row in rows if row["section"] == "memory"]
    return table_of(("device", "what", "MB"), [(row["device"], row["what"], f"{row['megabytes']:.0f}") for row in rows])


def checkpoints_table(rows: Rows) -> list[str]:
    """What checkpoints cost."""
    heads = ("device", "algorithm", "a checkpoint, s", "MB", "every so many steps", "that is, s", "share of the time")
    return table_of(
        heads,
        [
            (
                row["device"],
                row["what"],
                f"{row['seconds']:.2f}",
                f"{row['megabytes']:.0f}",
                f"{row['interval']:,}",
                f"{row['interval_seconds']:.0f}",
                f"{100 * row['share']:.2f} %",
            )
            for row in rows
            if row["section"] == "checkpoints"
        ],
    )


def memory_over_time_table(rows: Rows) -> list[str]:
    """What processes hold in the course of a run."""
    heads = ("device", "what", "minutes", "replay filled, times", "first, MB", "middle, MB", "last, MB", "largest, MB")
    cells = []
    for (device, what), curve in memory_curves(rows).items():
        sizes = [row["megabytes"] for row in curve]
        shown = (sizes[0], sizes[len(sizes) // 2], sizes[-1], max(sizes))
        length, filled = f"{curve[-1]['minute']:.1f}", f"{curve[-1]['replay_filled']:.1f}"
        cells.append((device, what, length, filled, *(f"{size:.0f}" for size in shown)))
    return table_of(heads, cells)


def memory_curves(rows: Rows) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of memory over time by device and by what was measured, in their order."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["section"] == OVER_TIME:
            found.setdefault((row["device"], row["what"]), []).append(row)
    return found


def _times(row: dict[str, Any], name: str = "times_first") -> str:
    return f"{row[name]:.1f}"


def table_of(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown; no lines where there are no rows."""
    if not cells:
        return []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in cells]


TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "views": views_table,
    "looks": looks_table,
    "workers": workers_table,
    "nodes": nodes_table,
    "learner": learner_table,
    "triangulation": triangulation_table,
    "training": training_table,
    "stages": stages_table,
    "growth": growth_table,
    "memory": memory_table,
    "checkpoints": checkpoints_table,
    OVER_TIME: memory_over_time_table,
}
"""Kinds of tables that a page may ask for."""
