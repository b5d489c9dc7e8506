"""Benchmarks as JSON and as a picture, and the pages that show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.tables import TABLES
from experiments.pages import fill_pages
from experiments.provenance import origin

Rows = Sequence[dict[str, Any]]


def write(docs: Path, rows: Rows) -> None:
    """Write ``bench.json`` and ``bench.png``, fill the pages' tables, and print them.

    Sections that were not measured this time stay as they were.

    :param docs: folder to write to.
    :param rows: each with its ``section`` and ``device``.
    """
    docs.mkdir(exist_ok=True)
    path = docs / "bench.json"
    measured = {(row["section"], row["device"]) for row in rows}
    before = json.loads(path.read_text())["runs"] if path.is_file() else []
    kept = [row for row in before if (row["section"], row["device"]) not in measured]
    made = origin()
    records = [*kept, *({**row, **made} for row in rows)]
    path.write_text(json.dumps({"study": "bench", "runs": records}, indent=1) + "\n")
    for name, table in TABLES.items():
        lines = table(list(rows))
        if lines:
            print("\n".join(["", name, *lines]))
    draw(records, docs / "bench.png")
    fill_pages(docs)
    print(f"\nwritten to {path}")


def draw(rows: Rows, path: Path) -> None:
    """Bars of what is faster than what, on a logarithmic axis.

    :param rows: all sections.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    bars = [
        (f"{row['scene'].split(',')[0]}: {row['what']}", row["times_defaults"])
        for row in rows
        if row["section"] == "views"
    ]
    bars += [
        (f"{row['section']}: {row['what'].partition(':')[0]}", row["times_first"])
        for row in rows
        if row["section"] in ("learner", "training")
    ]
    figure = Figure(figsize=(9, 0.6 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    names, ratios = zip(*reversed(bars), strict=True) if bars else ((), ())
    axes.barh(range(len(bars)), ratios, color=["C0" if "ours" in name else "0.7" for name in names])
    axes.set(yticks=range(len(bars)), yticklabels=names, xscale="log", xlabel="times as fast as the first of its group")
    axes.bar_label(axes.containers[0], fmt="%.1f", padding=3, fontsize=8) if bars else None
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=110)
