"""Tables of a report: heads and rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.reports.compare import FEWEST, aggregates, areas, improvements, steps_to
from experiments.reports.gather import OF_THE_TASK, Gathered, Result, differing
from experiments.studies.report import COMPARED, difference_text, mean_text, spread_text
from kp3d_rl.statistics import wilson_interval

REACHED = (0.5, 0.9)
"""Shares of success that it is said how soon they are reached."""


@dataclass(frozen=True)
class Table:
    """Text in rows.

    :param heads: of the columns.
    :param rows: as many cells each.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def success_table(gathered: Gathered) -> Table:
    """Final success of each method on each task: pooled with Wilson's interval, of each seed, and differences."""
    rows = []
    for env in gathered.envs:
        first: list[float] | None = None  # of the first method of all, where this task has it
        for method in gathered.methods:
            group = [r for r in gathered.of(env, method) if r.success is not None]
            if not group:
                continue
            k, n = sum(r.success[0] for r in group), sum(r.success[1] for r in group)
            low, high = wilson_interval(k, n)
            rates = [100 * r.score for r in group]
            difference = "" if first is None else difference_of(first, rates)
            first = rates if method == gathered.methods[0] else first
            each = ", ".join(f"{rate:.0f}" for rate in rates)
            interval = f"{100 * low:.0f} to {100 * high:.0f}"
            rows.append((env, method, str(len(group)), f"{k}/{n}", interval, each, difference))
    of_all = ("seeds", "success at end, pooled", "95 % interval, %", "each seed, %", "the first minus this")
    return Table(("task", "method", *of_all), tuple(rows))


def difference_of(first: Sequence[float], other: Sequence[float]) -> str:
    """Difference of two means; with Welch's interval where both have seeds enough."""
    if min(len(first), len(other)) < FEWEST:
        return f"{np.mean(first) - np.mean(other):.0f}"
    return difference_text(first, other)


def aggregates_table(tables: dict[str, np.ndarray]) -> Table:
    """Numbers over all seeds and tasks of each method."""
    rows: list[tuple[str, ...]] = []
    heads: tuple[str, ...] = ()
    for method, table in tables.items():
        found = aggregates(table)
        heads = ("method", "seeds", "tasks", *found)
        cells = [
            f"{value.value:.2f}" + (f" ({value.low:.2f} to {value.high:.2f})" if np.isfinite(value.low) else "")
            for value in found.values()
        ]
        rows.append((method, str(len(table)), str(table.shape[1]), *cells))
    return Table(heads, tuple(rows))


def improvements_table(tables: dict[str, np.ndarray]) -> Table:
    """How likely a run of the first method beats one of each other."""
    rows = tuple(
        (first, other, f"{value.value:.2f}", f"{value.low:.2f} to {value.high:.2f}")
        for first, other, value in improvements(tables)[0]
    )
    return Table(("a run of", "beats one of", "probability", "95 % interval"), rows)


def efficiency_table(gathered: Gathered) -> Table:
    """How soon, by steps and by the clock; of seeds that get there."""
    rows = []
    for env in gathered.envs:
        for method in gathered.methods:
            group = gathered.of(env, method)
            if not group:
                continue
            whole = areas(group)
            minutes = np.mean([r.minutes for r in group])
            rows.append((
                env, method, f"{np.mean([r.steps for r in group]):,.0f}", f"{minutes:.1f}",
                f"{100 * np.mean(whole):.0f}" if whole else "–", *(reached_text(group, share) for share in REACHED),
            ))  # fmt: skip
    reached = tuple(f"steps to {100 * share:.0f} %" for share in REACHED)
    return Table(("task", "method", "steps", "minutes", "mean success over the run, %", *reached), tuple(rows))


def reached_text(group: Sequence[Result], share: float) -> str:
    """The median step from which on a share of evaluated episodes succeeds, and how many seeds get there."""
    found = [step for r in group if r.curve and (step := steps_to(r, share)) is not None]
    counted = sum(bool(r.curve) for r in group)
    if not counted:
        return "–"
    return f"{np.median(found):,.0f} ({len(found)} of {counted})" if found else f"never (0 of {counted})"


def representation_table(gathered: Gathered) -> Table:
    """What keypoints are worth, of runs that were probed."""
    rows = []
    for env in gathered.envs:
        for method in gathered.methods:
            probes = [r.probe for r in gathered.of(env, method) if r.probe]
            if not probes:
                continue
            apart = [p["view_disagreement_cm"] for p in probes if p.get("view_disagreement_cm") is not None]
            same = [100 * p["same_body_share"] for p in probes if p.get("same_body_share") is not None]
            for body in probes[0]["probe_error_cm"]:
                having = [p for p in probes if body in p["probe_error_cm"]]
                own = spread_text([p["probe_error_cm"][body]["keypoints"] for p in having])
                others = [mean_text(having, body, other) for other in COMPARED]
                rows.append((env, method, str(len(probes)), body, own, *others,
                             spread_text(apart) if apart else "–", spread_text(same, 0) if same else "–"))  # fmt: skip
    heads = ("task", "method", "seeds", "body", "from keypoints, cm", *(f"{other}, cm" for other in COMPARED),
             "views apart, cm", "on the same body, %")  # fmt: skip
    return Table(heads, tuple(rows))


def options_table(gathered: Gathered) -> Table:
    """Options that are not the same for all methods on a task, of tasks whose runs have them."""
    groups = {
        (env, method): found[0].options
        for env in gathered.envs
        for method in gathered.methods
        if (found := [r for r in gathered.of(env, method) if r.options])
    }
    by_env = [[options for (env, _), options in groups.items() if env == one] for one in gathered.envs]
    of_methods = (name for options in by_env for name in differing(options))
    of_tasks = (n for n in OF_THE_TASK if any(len({repr(some.get(n)) for some in one}) > 1 for one in by_env))
    names = list(dict.fromkeys([*of_methods, *of_tasks]))
    rows = tuple((*key, *(str(options.get(name)) for name in names)) for key, options in groups.items())
    return Table(("task", "method", *names), rows if names else ())


def runs_table(gathered: Gathered) -> Table:
    """Every run with where it comes from."""
    rows = tuple(
        (
            r.label, r.method, str(r.seed), f"{r.steps:,}", f"{r.minutes:.1f}",
            "–" if r.success is None else f"{r.success[0]}/{r.success[1]}",
            r.made.get("commit", ""), r.made.get("machine", ""), r.made.get("command", ""),
        )
        for r in gathered.results
    )  # fmt: skip
    heads = ("run", "method", "seed", "steps", "minutes", "success", "commit", "machine", "command")
    return Table(heads, rows)
