"""Figures of a report, as SVG for the page and as small PNG for documentation."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reports.compare import (
    STATISTICS,
    Band,
    aggregates,
    improvements,
    learning_curve,
    profile,
)
from experiments.reports.gather import Gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255", "#997700", "#994455")
"""Paul Tol's bright scheme, told apart also by who sees colours otherwise, and more of his."""
DASHES = ("-", "--", ":", "-.")
LABEL = 44
"""Letters in a line of a method's name; names made of many options take several lines."""
LETTERS = 13
"""Letters of a legend to an inch, about."""
LINE = 0.17
"""Inches of a line of a legend."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure.

    :param width, height: inches.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    return Figure(figsize=(width, height), layout="constrained")


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of a method by its place."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def svg(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes each time."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "kp3d_rl", "svg.fonttype": "path"}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def curves_figure(gathered: Gathered, by_minutes: bool = False) -> Figure | None:
    """Learning curves of all methods, a panel for each task.

    :param gathered: the runs.
    :param by_minutes: over minutes of training instead of environment steps.
    :return: None where no run was evaluated while it trained.
    """
    bands = {
        env: {method: learning_curve(gathered.of(env, method), by_minutes) for method in gathered.methods}
        for env in gathered.envs
    }
    panels = {env: found for env, found in bands.items() if any(found.values())}
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(1.5 + 4.2 * columns, 3.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (env, found) in zip(axes, panels.items(), strict=False):
        for number, method in enumerate(gathered.methods):
            if (band := found[method]) is not None:
                draw_band(panel, band, look(number), method, 100.0)
        panel.set(title=env, xlabel="minutes" if by_minutes else "environment steps", ylabel="success at end, %")
        panel.set_ylim(-3, 103)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    for panel in axes[len(panels) :]:
        panel.axis("off")
    add_legend(figure, axes[: len(panels)])
    return figure


def add_legend(figure: Figure, panels: Sequence[Any]) -> None:
    """One legend of all panels, below them, for which the figure grows."""
    found = [pair for panel in panels for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    by_label = {label: handle for handle, label in found}
    widest = max(len(line) for label in by_label for line in label.splitlines()) + 8  # and a sample of the line
    columns = max(1, min(4, len(by_label), int(figure.get_figwidth() * LETTERS / widest)))
    lines = sum(label.count("\n") + 1.3 for label in by_label) / columns
    figure.set_figheight(figure.get_figheight() + 0.2 + LINE * lines)
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(by_label.values(), by_label.keys(), **place)


def in_lines(method: str) -> str:
    """A method's name as figures have it."""
    return textwrap.fill(method, LABEL)


def draw_band(panel: Any, band: Band, style: dict[str, Any], label: str, factor: float = 1.0) -> None:
    """A curve and its band."""
    panel.plot(band.x, factor * band.y, linewidth=2, label=in_lines(label), **style)
    if (band.low != band.high).any():
        panel.fill_between(band.x, factor * band.low, factor * band.high, color=style["color"], alpha=0.18, linewidth=0)


def aggregates_figure(tables: dict[str, np.ndarray], order: Sequence[str]) -> Figure:
    """Interquartile mean, mean, median and optimality gap of each method with 95 % intervals.

    :param tables: (R, T) by method.
    :param order: of all methods of the report, by which they have their colours.
    """
    figure = new_figure(2.4 * len(STATISTICS) + 1.8, 0.9 + 0.38 * len(tables))
    panels = figure.subplots(1, len(STATISTICS), sharey=True)
    for row, (method, table) in enumerate(tables.items()):
        for panel, found in zip(panels, aggregates(table).values(), strict=True):
            colour = look(order.index(method))["color"]
            if np.isfinite(found.low):
                panel.barh(row, found.high - found.low, left=found.low, height=0.6, color=colour, alpha=0.4)
            panel.plot([found.value] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
    for panel, name in zip(panels, STATISTICS, strict=True):
        panel.set(title=name, xlim=(-0.03, 1.03))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(tables)), [in_lines(method) for method in tables])
    panels[0].invert_yaxis()
    return figure


def profiles_figure(tables: dict[str, np.ndarray], order: Sequence[str]) -> Figure:
    """Performance profiles of all methods.

    :param tables: (R, T) by method.
    :param order: of all methods of the report, by which they have their looks.
    """
    figure = new_figure(7.5, 3.8)
    panel = figure.subplots()
    for method, table in tables.items():
        draw_band(panel, profile(table), look(order.index(method)), method)
    panel.set(xlabel="success at end, τ", ylabel="share of runs above τ", xlim=(0, 1), ylim=(-0.03, 1.03))
    panel.grid(alpha=0.3)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def improvements_figure(tables: dict[str, np.ndarray]) -> Figure | None:
    """How likely a run of the first method beats one of each other.

    :param tables: (R, T) by method.
    :return: None where no two methods have seeds enough.
    """
    found, _ = improvements(tables)
    if not found:
        return None
    figure = new_figure(7.0, 0.9 + 0.4 * len(found))
    panel = figure.subplots()
    for row, (_, _, value) in enumerate(found):
        panel.barh(row, value.high - value.low, left=value.low, height=0.6, color=COLOURS[0], alpha=0.4)
        panel.plot([value.value] * 2, [row - 0.3, row + 0.3], color=COLOURS[0], linewidth=2.5)
    panel.axvline(0.5, color="black", linewidth=1, linestyle=":")
    panel.set(xlim=(-0.03, 1.03), xlabel=in_lines(f"probability that {found[0][0]} beats …"))
    panel.set_yticks(range(len(found)), [in_lines(other) for _, other, _ in found])
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    return figure
