"""How sure the numbers are: intervals, and the comparison of methods over seeds and tasks.

Scores of a method are a table (R, T): R runs, which differ by seed, of each of T tasks. What is said of such tables
follows Agarwal, Schwarzer, Castro, Courville, Bellemare, "Deep reinforcement learning at the edge of the statistical
precipice", NeurIPS 2021; other sources stand at the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

Statistic = Callable[..., np.ndarray]
"""Of tables (..., R, T), one or more, to numbers (...) or (..., N)."""
_CHUNK = 2_000_000


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval for a success rate by Wilson's score ("Probable inference", 1927), good for few trials too.

    :return: (low, high); (0, 1) where nothing was tried.
    :raises ValueError: where ``successes`` is not between 0 and ``trials``.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and trials, not {successes} of {trials}")
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == trials else middle + half


def bootstrap_mean_interval(
    values: object, seed: int = 0, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron, 1979).

    :param values: (N,) independent results, such as returns of episodes.
    :return: (low, high); NaN twice where there are no values.
    """
    values = np.asarray(values, np.float64).ravel()
    if not len(values):
        return math.nan, math.nan
    means = values[np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))].mean(-1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def welch_interval(first: object, second: object, confidence: float = 0.95) -> tuple[float, float]:
    """Welch's t interval for the difference of two means ("The generalization of Student's problem", 1947).

    For the few seeds that methods are compared over, a bootstrap would be too narrow: of five against five, its 95 %
    interval covers 87 %.

    :param first: (N,) independent results, at least 2.
    :param second: (M,) independent results of the other, at least 2.
    :return: (low, high) of mean(first) - mean(second); NaN twice where one of them has fewer than 2, or where neither
        varies: two seeds of 100 % each say nothing of how far the next ones may be apart.
    """
    first, second = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return math.nan, math.nan
    return _welch(first, second, confidence)


def _welch(first: np.ndarray, second: np.ndarray, confidence: float) -> tuple[float, float]:
    parts = np.array([v.var(ddof=1) / len(v) for v in (first, second)])
    middle, variance = float(first.mean() - second.mean()), float(parts.sum())
    if variance == 0:
        return middle, middle
    freedom = variance**2 / (parts**2 / [len(first) - 1, len(second) - 1]).sum()
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    return middle - half, middle + half


def ratio_interval(first: object, second: object, confidence: float = 0.95) -> tuple[float, float]:
    """Fieller's interval for the ratio of two means ("Some problems in interval estimation", 1954), variances apart.

    It holds those ratios r for which :func:`welch_interval` of first - r * second has 0 in it.

    :param first: (N,) independent results, at least 2, of a mean above 0.
    :param second: (M,) independent results of the other, at least 2, of a mean above 0.
    :return: (low, high) of mean(first) / mean(second): low is 0 where the first mean may be 0, high is infinite where
        the second may; NaN twice where one has fewer than 2 results or no mean above 0, or where neither varies.
    """
    first, second = np.asarray(first, np.float64).ravel(), np.asarray(second, np.float64).ravel()
    if min(len(first), len(second)) < 2 or not min(first.mean(), second.mean()) > 0:
        return math.nan, math.nan
    if np.ptp(first) == np.ptp(second) == 0:
        return math.nan, math.nan
    inverse = _least_ratio(second, first, confidence)
    return _least_ratio(first, second, confidence), 1.0 / inverse if inverse else math.inf


def _least_ratio(first: np.ndarray, second: np.ndarray, confidence: float) -> float:
    """The lower end of the interval for mean(first) / mean(second), by bisection; 0 where it reaches below."""

    def above(ratio: float) -> bool:
        return _welch(first, ratio * second, confidence)[0] > 0

    outside, inside = 0.0, float(first.mean() / second.mean())
    if not above(outside):
        return 0.0
    for _ in range(45):
        middle = 0.5 * (outside + inside)
        outside, inside = (middle, inside) if above(middle) else (outside, middle)
    return inside


def interquartile_mean(values: object) -> float:
    """The mean of the middle half, a quarter (rounded down) cut from either end.

    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021.

    :param values: any shape, flattened. NaN where there are none.
    """
    values = np.sort(np.asarray(values, np.float64).ravel())
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean()) if len(values) else math.nan


def interquartile_means(scores: np.ndarray) -> np.ndarray:
    """:func:`interquartile_mean` of each table, over all its runs and tasks.

    :param scores: (..., R, T).
    :return: (...).
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """How much is missing to a target, on average; more than the target counts as the target.

    :param scores: (..., R, T).
    :param target: a score that is good enough.
    :return: (...).
    """
    return target - np.minimum(scores, target).mean((-2, -1))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs that score above each threshold, over all tasks: a run-score distribution.

    :param scores: (..., R, T).
    :param thresholds: (N,).
    :return: (..., N).
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    above = flat[..., None, :] > np.asarray(thresholds, np.float64)[:, None]
    return above.mean(-1)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How likely a run of one method beats a run of another on a task, ties counting half: the mean over tasks.

    Mann and Whitney's U over the number of pairs.

    :param first: (..., R, T).
    :param second: (..., S, T) of the same tasks.
    :return: (...).
    """
    apart = first[..., :, None, :] - second[..., None, :, :]
    return (0.5 * np.sign(apart) + 0.5).mean((-3, -2, -1))


def stratified_interval(
    statistic: Statistic,
    *scores: np.ndarray,
    rng: np.random.Generator | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap interval of a statistic, runs resampled within each task and method by itself.

    :param statistic: of the tables.
    :param scores: (R, T) of each method; numbers of runs may differ between methods.
    :param rng: what to draw from; by default the same draws each time.
    :param confidence: of the interval.
    :param resamples: how many.
    :return: lower and upper ends, shaped as the statistic.
    :raises ValueError: for a table without runs or tasks, or with scores that are not finite.
    """
    tables = [checked(table) for table in scores]
    rng = np.random.default_rng(0) if rng is None else rng
    at_once = max(1, _CHUNK // sum(table.size for table in tables))
    found, left = [], resamples
    while left > 0:
        count = min(at_once, left)
        found.append(statistic(*(_resampled(table, count, rng) for table in tables)))
        left -= count
    low, high = np.quantile(np.concatenate(found), [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return low, high


def checked(scores: object) -> np.ndarray:
    """A table of scores as numbers.

    :param scores: (R, T).
    :raises ValueError: where it is no such table.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores must be a table (runs, tasks) with something in it, not of shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of {table.size} scores are not finite")
    return table


def _resampled(table: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, R, T) tables whose runs are drawn with replacement, task by task."""
    rows = rng.integers(len(table), size=(count, *table.shape))
    return table[rows, np.arange(table.shape[1])]
