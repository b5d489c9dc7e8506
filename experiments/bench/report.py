"""Benchmarks as JSON and as a picture, and the pages that show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.tables import TABLES, memory_curves
from experiments.pages import fill_pages
from experiments.records import record

Rows = Sequence[dict[str, Any]]


def write(docs: Path, rows: Rows) -> None:
    """Write ``bench.json`` and its pictures, fill the pages' tables, and print them.

    Sections that were not measured this time stay as they were.

    :param docs: folder to write to, which exists.
    :param rows: each with its ``section`` and ``device``.
    """
    path = docs / "bench.json"
    records = record(path, rows, ("section", "device"))
    for name, table in TABLES.items():
        lines = table(list(rows))
        if lines:
            print("\n".join(["", name, *lines]))
    draw(records, docs / "bench.png")
    draw_memory(records, docs / "bench-memory.png")
    fill_pages(docs)
    print(f"\nwritten to {path}")


def draw(rows: Rows, path: Path) -> None:
    """Bars of what is faster than what, on a logarithmic axis.

    :param rows: all sections.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    viewed = [row for row in rows if row["section"] == "views"]
    trained = [row for row in rows if row["section"] in ("learner", "training")]
    where = device_marks([*viewed, *trained])
    bars = [
        (f"{row['scene'].split(',')[0]}: {row['what']}{where[row['device']]}", row["times_defaults"]) for row in viewed
    ]
    bars += [
        (f"{row['section']}: {row['what'].partition(':')[0]}{where[row['device']]}", row["times_first"])
        for row in trained
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


def draw_memory(rows: Rows, path: Path) -> None:
    """What processes hold over the time of a run; no picture where none was measured.

    :param rows: all sections.
    :param path: of the picture to write.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    curves = memory_curves(rows)
    if not curves:
        return
    where = device_marks([row for curve in curves.values() for row in curve])
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (device, what), curve in curves.items():
        minutes, sizes = ([row[name] for row in curve] for name in ("minute", "megabytes"))
        axes.plot(minutes, sizes, marker="o", markersize=4, label=what + where[device])
    axes.set(xlabel="minutes", ylabel="proportional set size, MB")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=110)


def device_marks(rows: Rows) -> dict[str, str]:
    """What to add to the label of a device's rows: nothing where there is only one device.

    :param rows: that are drawn together.
    """
    devices = list(dict.fromkeys(row["device"] for row in rows))
    return {device: f" ({device})" if len(devices) > 1 else "" for device in devices}
