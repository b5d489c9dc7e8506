"""Intervals and comparisons: against SciPy, naive loops, and what rliable said of the same tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.stats import ttest_ind

from kp3d_rl.statistics import (
    bootstrap_mean_interval,
    checked,
    interquartile_mean,
    interquartile_means,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    ratio_interval,
    stratified_interval,
    welch_interval,
    wilson_interval,
)

REFERENCE = json.loads((Path(__file__).parent / "rliable_reference.json").read_text())
THRESHOLDS = [0.0, 0.25, 0.5, 0.75, 1.0]


def table(shape: tuple[int, int], seed: int) -> np.ndarray:
    """As in make_rliable_reference.py."""
    return np.round(np.random.RandomState(seed).uniform(-0.2, 1.2, shape), 1)


class TheSameDraws:
    """Draws as rliable does: resample by resample, table by table, from NumPy's old generator.

    :param seed: of it.
    :param shapes: of the tables.
    :param resamples: how many.
    """

    def __init__(self, seed: int, shapes: list[tuple[int, int]], resamples: int) -> None:
        old = np.random.RandomState(seed)
        drawn = [[old.choice(shape[0], shape, replace=True) for shape in shapes] for _ in range(resamples)]
        self.rows = [np.stack([draw[number] for draw in drawn]) for number in range(len(shapes))]

    def integers(self, high: int, size: tuple[int, ...]) -> np.ndarray:
        rows = self.rows.pop(0)
        assert rows.shape == size and rows.max() < high
        return rows


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: str(row["shape"]))
def test_numbers_are_those_of_the_reference_implementation(row):
    shape, seed = tuple(row["shape"]), row["seed"]
    first, second = table(shape, seed), table((shape[0] + 1, shape[1]), 100 + seed)
    assert interquartile_means(first) == pytest.approx(row["iqm"], abs=1e-6)
    assert optimality_gap(first) == pytest.approx(row["optimality_gap"], abs=1e-6)
    assert probability_of_improvement(first, second) == pytest.approx(row["probability_of_improvement"], abs=1e-6)
    np.testing.assert_allclose(performance_profile(first, THRESHOLDS), row["profile"], atol=1e-6)
    count = row["resamples"]
    draws = TheSameDraws(seed, [shape], count)
    assert stratified_interval(interquartile_means, first, rng=draws, resamples=count) == pytest.approx(
        row["iqm_interval"], abs=1e-6
    )
    draws = TheSameDraws(seed, [first.shape, second.shape], count)
    found = stratified_interval(probability_of_improvement, first, second, rng=draws, resamples=count)
    assert found == pytest.approx(row["improvement_interval"], abs=1e-6)


def test_probability_of_improvement_is_mann_and_whitneys_and_ties_count_half():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (6, 3)).astype(float), rng.integers(0, 4, (5, 3)).astype(float)
    expected = [stats.mannwhitneyu(first[:, t], second[:, t]).statistic / 30 for t in range(3)]
    assert probability_of_improvement(first, second) == pytest.approx(np.mean(expected))
    assert probability_of_improvement(first, first) == 0.5
    assert probability_of_improvement(first + 10, second) == 1 and probability_of_improvement(first, second + 10) == 0
    assert probability_of_improvement(first, second) + probability_of_improvement(second, first) == pytest.approx(1)


def test_a_stratified_interval_resamples_each_task_by_itself():
    """Tasks far from each other: their mean moves by the spread within each alone."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(8, 5)) + 100 * np.arange(5)
    low, high = stratified_interval(lambda x: x.mean((-2, -1)), scores, resamples=4000)
    half = 1.96 * scores.std(0).mean() / math.sqrt(8 * 5)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert low < scores.mean() < high and high - low < 2
    assert stratified_interval(interquartile_means, scores) == stratified_interval(interquartile_means, scores)
    narrow = stratified_interval(lambda x: x.mean((-2, -1)), scores, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_of_a_profile_is_one_for_each_threshold(monkeypatch):
    scores = np.random.default_rng(2).uniform(size=(6, 4))
    profile = lambda x: performance_profile(x, THRESHOLDS)  # noqa: E731
    low, high = stratified_interval(profile, scores, resamples=500)
    assert low.shape == high.shape == (5,)
    assert (low <= profile(scores)).all() and (profile(scores) <= high).all() and low[0] == 1 and high[-1] == 0
    monkeypatch.setattr("kp3d_rl.statistics._CHUNK", 24 * 100)  # in five pieces
    again = stratified_interval(profile, scores, resamples=500)
    assert np.array_equal(again[0], low) and np.array_equal(again[1], high)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([[1.0, math.nan]], "1 of 2 scores are not finite"), ([1.0, 2.0], "shape"), (np.zeros((0, 3)), "something in it")],
)
def test_what_is_no_table_is_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        checked(scores)


def test_many_tables_are_judged_like_each_by_itself():
    tables = np.random.default_rng(3).normal(size=(4, 2, 7, 3))
    others = np.random.default_rng(4).normal(size=(4, 2, 5, 3))
    for index in np.ndindex(4, 2):
        assert interquartile_means(tables)[index] == pytest.approx(interquartile_mean(tables[index]))
        assert optimality_gap(tables, 0.3)[index] == pytest.approx(0.3 - np.minimum(tables[index], 0.3).mean())
        naive = np.mean([a > b for t in range(3) for a in tables[index][:, t] for b in others[index][:, t]])
        assert probability_of_improvement(tables, others)[index] == pytest.approx(naive)


@pytest.mark.parametrize("k, n", [(0, 10), (10, 10), (3, 7), (19, 20), (50, 100), (0, 1), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.9])
def test_wilson_interval_agrees_with_scipy(k, n, confidence):
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_at_the_ends():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 20)[0] == 0.0 and wilson_interval(20, 20)[1] == 1.0
    for k, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="between 0 and trials"):
            wilson_interval(k, n)


def test_bootstrap_interval_agrees_with_scipy_and_with_the_normal_one():
    values = np.random.default_rng(0).exponential(size=60)
    low, high = bootstrap_mean_interval(values, seed=1)
    scipy = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    assert (low, high) == pytest.approx((scipy.low, scipy.high), abs=0.02)
    assert low < values.mean() < high
    assert bootstrap_mean_interval(values, seed=1) == (low, high)
    assert bootstrap_mean_interval([3.0]) == (3.0, 3.0)
    assert all(math.isnan(x) for x in bootstrap_mean_interval([]))
    narrow = bootstrap_mean_interval(values, seed=1, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize("count", [1, 3, 4, 5, 10, 31])
def test_interquartile_mean_agrees_with_scipy(count):
    values = np.random.default_rng(count).normal(size=count)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))
    assert math.isnan(interquartile_mean([]))


def test_welch_agrees_with_scipy_and_covers_what_it_says() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(3.0, 1.0, 5), generator.normal(1.0, 4.0, 3)
    reference = ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    assert welch_interval(first, second, 0.9) == pytest.approx((reference.low, reference.high))
    draws = generator.normal(0.0, 1.0, (2000, 2, 5))
    covered = [low <= 0.0 <= high for low, high in (welch_interval(a, b) for a, b in draws)]
    assert 0.93 < np.mean(covered) < 0.975
    for unknown in (([1.0], [1.0, 2.0]), ([1, 1], [0, 0])):  # what never varied may do so the next time
        assert np.isnan(welch_interval(*unknown)).all() and np.isnan(ratio_interval(*unknown)).all()


def test_the_ratio_interval_holds_what_welch_does_not_refuse_and_covers_what_it_says() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(3.0, 0.4, 5), generator.normal(2.0, 0.3, 4)
    low, high = ratio_interval(first, second, 0.9)
    for ratio, inside in ((low, True), (high, True), (0.999 * low, False), (1.001 * high, False)):
        differ = ttest_ind(first, ratio * second, equal_var=False).confidence_interval(0.9)
        assert (differ.low <= 1e-9 and differ.high >= -1e-9) == inside
    assert ratio_interval(4 * first, second, 0.9) == pytest.approx((4 * low, 4 * high))
    assert ratio_interval(second, first, 0.9) == pytest.approx((1 / high, 1 / low))
    draws = zip(generator.normal(3.0, 0.5, (400, 5)), generator.normal(2.0, 1.0, (400, 5)), strict=True)
    covered = [low <= 1.5 <= high for low, high in (ratio_interval(a, b) for a, b in draws)]
    assert 0.92 < np.mean(covered) < 0.98
    low, high = ratio_interval([3.0, 3.0], [2.0, 2.1, 1.9])  # of which one never varied: 3 over Student's interval
    half = 0.1 * stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (low, high) == pytest.approx((3 / (2 + half), 3 / (2 - half)), rel=1e-6)


def test_a_ratio_to_a_mean_that_may_be_zero_has_no_upper_end() -> None:
    low, high = ratio_interval([10.0, 11.0, 12.0], [0.0, 0.1, 4.0])
    assert 0 < low < 11 / 1.4 and high == math.inf
    assert ratio_interval([0.0, 0.1, 4.0], [10.0, 11.0, 12.0])[0] == 0.0
    for first, second in (([1.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([-1.0, -2.0], [1.0, 2.0])):
        assert np.isnan(ratio_interval(first, second)).all()
