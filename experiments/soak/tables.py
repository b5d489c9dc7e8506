"""What the soak found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from experiments.bench.tables import table_of

Rows = Sequence[dict[str, Any]]
NAMES = {
    "megabytes": "memory, MB", "shared_megabytes": "shared memory, MB", "open_files": "open files",
    "threads": "threads", "processes": "processes",
}  # fmt: skip


def kills_table(rows: Rows) -> list[str]:
    """Trainings that were killed; rows of before checkpoints were recorded have none that were compared."""
    heads = ("training", "kills", "in a write", "resumed", "checkpoints compared", "lost checkpoints", "runs",
             "bit for bit equal")  # fmt: skip
    columns = ("kills", "in_a_write", "resumes", "states", "lost", "runs", "identical")
    found = [row for row in rows if row["section"] == "kills"]
    return table_of(heads, [(_title(row["what"]), *(str(row.get(name, 0)) for name in columns)) for row in found])


def _title(what: str) -> str:
    algorithm, _, rest = what.partition(" ")
    return f"{algorithm.upper()} {rest}".rstrip()


def damage_table(rows: Rows) -> list[str]:
    """Files that were damaged."""
    heads = ("damaged files", "refused with one line", "unchanged", "loaded as the file says", "failures", "slowest, s")
    found = [row for row in rows if row["section"] == "damage"]
    return table_of(
        heads,
        [
            (
                f"{row['files']:,}",
                *(f"{row['counts'].get(name, 0):,}" for name in ("refused", "unchanged", "as the file says")),
                str(len(row["failures"])),
                f"{row['slowest']:.1f}",
            )
            for row in found
        ],
    )


def endurance_table(rows: Rows) -> list[str]:
    """What a long training held after its warm-up, and at its end."""
    found = [row for row in rows if row["section"] == "endurance" and row["what"] in NAMES]
    return table_of(
        ("", "after the warm-up", "at the end", "growth"),
        [
            (NAMES[row["what"]], f"{row['first']:.1f}", f"{row['last']:.1f}", f"{100 * row['growth']:+.2f} %")
            for row in found
        ],
    )


TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "kills": kills_table,
    "damage": damage_table,
    "endurance": endurance_table,
}
"""Kinds of tables that a page may ask for."""
