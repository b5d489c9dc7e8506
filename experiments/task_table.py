"""The table of all registered tasks, from ``docs/tasks.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

STARTS = 50
"""Starts that are looked at: of a task with configurations, each of them once."""

Row = dict[str, Any]


def table(records: Sequence[Row]) -> list[str]:
    """Tasks, one row each: what each camera sees, of 50 starts, and what the script solves.

    :param records: as ``docs/tasks.json`` has them.
    """
    heading = ("environment", f"its own cameras see, of {STARTS} starts", "the paper's cameras", "script: once, at end")
    lines = [f"| {' | '.join(heading)} |", "|---|---|---|---|"]
    for row in sorted(records, key=lambda row: (row["env"].startswith("metaworld-"), row["env"])):
        own, others = (_views(row.get(name)) for name in ("seen", "seen_by_others"))
        script = f"{row['success_once']}, {row['success_at_end']} of {row['episodes']}" if "episodes" in row else "-"
        lines.append(f"| {row['env']} | {own} | {others} | {script} |")
    return lines


def _views(seen: dict[str, dict[str, int]] | None) -> str:
    if seen is None:
        return "-"
    parts = []
    for thing, views in seen.items():
        counts = ", ".join(str(count) for count in views.values())
        parts.append(f"{thing} {counts}" if len(set(views.values())) > 1 else f"{thing} {counts.split(',')[0]} each")
    return "; ".join(parts)


TABLES = {"tasks": table}
