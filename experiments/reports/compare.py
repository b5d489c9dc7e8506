"""Methods against each other, over seeds and tasks: the numbers that a report's figures and tables show.

What is said of tables of scores follows Agarwal et al., "Deep reinforcement learning at the edge of the statistical
precipice", NeurIPS 2021 (:mod:`kp3d_rl.statistics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.reports.gather import Gathered, Result
from experiments.studies.report import area
from kp3d_rl.statistics import (
    interquartile_means,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

ENOUGH = 5
"""Seeds from which on it is said how likely one method beats another."""
FEWEST = 3
"""Seeds from which on intervals over seeds are given."""
POINTS = 60
"""Points of a curve."""
THRESHOLDS = np.linspace(0.0, 1.0, 51)
"""Of performance profiles."""


@dataclass(frozen=True)
class Band:
    """A curve with an interval.

    :param x: (N,).
    :param y: (N,).
    :param low, high: (N,) ends of the interval; equal to ``y`` where seeds are too few for one.
    :param seeds: that it is of.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


@dataclass(frozen=True)
class Aggregate:
    """A number over seeds and tasks.

    :param value: of all runs.
    :param low, high: ends of its interval; NaN where seeds are too few.
    """

    value: float
    low: float
    high: float


def learning_curve(results: list[Result], by_minutes: bool = False) -> Band | None:
    """The interquartile mean of success over steps, with a stratified bootstrap band, as far as all seeds have got.

    :param results: of one method on one task.
    :param by_minutes: over minutes of training instead, as if each took its own mean speed throughout.
    :return: None where no run was evaluated while it trained.
    """
    curves = [np.array([(0.0, 0.0), *r.curve]) for r in results if r.curve]
    if not curves:
        return None
    if by_minutes:
        minutes = [r.minutes / max(1, r.steps) for r in results if r.curve]
        curves = [curve * [scale, 1.0] for curve, scale in zip(curves, minutes, strict=True)]
    x = np.linspace(0.0, min(curve[-1, 0] for curve in curves), POINTS)
    scores = np.stack([np.interp(x, curve[:, 0], curve[:, 1]) for curve in curves])  # (R, N)
    middle = column_means(scores)
    if len(curves) < FEWEST:
        return Band(x, middle, middle, middle, len(curves))
    low, high = stratified_interval(column_means, scores, resamples=1000)
    return Band(x, middle, low, high, len(curves))


def column_means(tables: np.ndarray) -> np.ndarray:
    """The interquartile mean over runs of each column: (..., R, N) to (..., N)."""
    ordered, cut = np.sort(tables, axis=-2), tables.shape[-2] // 4
    return ordered[..., cut : tables.shape[-2] - cut, :].mean(-2)


def scores(gathered: Gathered, method: str) -> np.ndarray | None:
    """A method's final success as a table of seeds and tasks.

    :return: (R, T), of as many seeds as each task has; None where a task of the report lacks the method, or a run an
        evaluation.
    """
    columns = []
    for env in gathered.envs:
        found = [r.score for r in sorted(gathered.of(env, method), key=lambda r: r.seed) if r.score is not None]
        if not found:
            return None
        columns.append(found)
    runs = min(map(len, columns))
    return np.array([column[:runs] for column in columns], np.float64).T


def tables_of_scores(gathered: Gathered) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tables of all methods, and lines about those that have none, or seeds too few for intervals."""
    found: dict[str, np.ndarray] = {}
    lines = []
    for method in gathered.methods:
        table = scores(gathered, method)
        if table is None:
            missing = [env for env in gathered.envs if not any(r.score is not None for r in gathered.of(env, method))]
            lines.append(f"{method}: not in the comparison over tasks, it was not evaluated on {', '.join(missing)}")
            continue
        found[method] = table
        most = max(len(gathered.of(env, method)) for env in gathered.envs)
        if len(table) < most:
            lines.append(f"{method}: of {most} seeds {len(table)} count over all tasks, as many as each task has")
        if len(table) < FEWEST:
            lines.append(f"{method}: no intervals over seeds, there are {len(table)} where {FEWEST} are needed")
    return found, lines


STATISTICS = {
    "interquartile mean": interquartile_means,
    "mean": lambda tables: tables.mean((-2, -1)),
    "median over tasks": lambda tables: np.median(tables.mean(-2), axis=-1),
    "optimality gap": optimality_gap,
}
"""What is said of a table of scores."""


def aggregates(table: np.ndarray) -> dict[str, Aggregate]:
    """:data:`STATISTICS` of a method, with stratified bootstrap intervals.

    :param table: (R, T).
    """
    found = {}
    for name, statistic in STATISTICS.items():
        low, high = stratified_interval(statistic, table) if len(table) >= FEWEST else (np.nan, np.nan)
        found[name] = Aggregate(float(statistic(table)), float(low), float(high))
    return found


def profile(table: np.ndarray) -> Band:
    """The share of runs that succeed more often than each threshold, with its band.

    :param table: (R, T).
    """

    def share(tables: np.ndarray) -> np.ndarray:
        return performance_profile(tables, THRESHOLDS)

    middle = share(table)
    low, high = stratified_interval(share, table, resamples=1000) if len(table) >= FEWEST else (middle, middle)
    return Band(THRESHOLDS, middle, low, high, len(table))


def improvements(tables: dict[str, np.ndarray]) -> tuple[list[tuple[str, str, Aggregate]], list[str]]:
    """How likely a run of the first method beats one of each other method, from five seeds of both up.

    :param tables: (R, T) by method.
    :return: pairs with their probability, and lines about pairs that have too few seeds.
    """
    names = list(tables)
    found, lines = [], []
    for first in names[:1]:
        for other in names[1:]:
            short = [name for name in (first, other) if len(tables[name]) < ENOUGH]
            if short:
                seeds = ", ".join(f"{name} has {len(tables[name])}" for name in short)
                lines.append(f"no probability that {first} beats {other}: of {ENOUGH} seeds that it takes, {seeds}")
                continue
            low, high = stratified_interval(probability_of_improvement, tables[first], tables[other])
            value = float(probability_of_improvement(tables[first], tables[other]))
            found.append((first, other, Aggregate(value, float(low), float(high))))
    return found, lines


def steps_to(result: Result, share: float) -> float | None:
    """The first evaluated step at which a run's success reaches a share, and still has it one evaluation later.

    The last evaluation has none after it, and counts by itself.

    :param share: of episodes.
    :return: None where it never gets there.
    """
    values = [value for _, value in result.curve]
    for number, (step, value) in enumerate(result.curve):
        if value >= share and min(values[number : number + 2]) >= share:
            return step
    return None


def areas(results: list[Result]) -> list[float]:
    """The mean success over the whole training of each run that was evaluated on the way."""
    return [area(result.curve) for result in results if result.curve]
