"""The intervals against scipy's, against theory, and on cases with a known result."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from goal.evaluation import statistics


def hits(seed: int, queries: int, share: float) -> np.ndarray:
    return 100.0 * (np.random.default_rng(seed).random((queries, 1)) < share)


@pytest.mark.parametrize(("right", "queries"), [(0, 35), (35, 35), (1, 35), (20, 60), (305, 500), (1, 1)])
def test_the_interval_of_a_rate_is_wilson_s(right: int, queries: int) -> None:
    """At 0 and 100 percent too, where a percentile bootstrap collapses to a point."""
    values = np.zeros((queries, 1))
    values[:right] = 100
    (found,) = statistics.intervals(values, np.arange(queries))
    wanted = binomtest(right, queries).proportion_ci(method="wilson")
    assert found.mean == pytest.approx(100 * right / queries)
    assert (found.low, found.high) == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=1e-4)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for seed in range(200):
        (found,) = statistics.intervals(hits(seed, 300, 0.6), np.arange(300))
        covered += found.low <= 60 <= found.high
    assert 180 <= covered <= 199


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_intervals_of_correlated_queries_cover_the_truth(share: float) -> None:
    """Each picture's five captions succeed or fail together in half of the pictures."""
    covered = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        values = 100.0 * (draw.random((60, 5)) < share)
        together = draw.random(60) < 0.5
        values[together] = values[together][:, :1]
        (found,) = statistics.intervals(values.reshape(-1, 1), np.repeat(np.arange(60), 5))
        covered += found.low <= 100 * share <= found.high
    assert 276 <= covered <= 299


def test_the_interval_of_a_mean_that_is_no_rate_is_as_wide_as_its_values_vary() -> None:
    """Average precisions vary less than hits and misses of the same mean."""
    values = np.random.default_rng(0).uniform(20, 30, (1000, 1))
    (found,) = statistics.intervals(values, np.arange(1000))
    half = 1.96 * values.std() / math.sqrt(1000)
    assert (found.high - found.low) / 2 == pytest.approx(half, abs=half)
    (rate,) = statistics.intervals(hits(0, 1000, 0.25), np.arange(1000))
    assert found.high - found.low < (rate.high - rate.low) / 4


def test_correlated_captions_widen_the_interval() -> None:
    once = hits(1, 200, 0.5)
    five = np.repeat(once, 5, axis=0)
    (apart,) = statistics.intervals(five, np.arange(1000))
    (together,) = statistics.intervals(five, np.repeat(np.arange(200), 5))
    (single,) = statistics.intervals(once, np.arange(200))
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert (together.low, together.high) == pytest.approx((single.low, single.high))


def test_captions_of_one_picture_that_all_fail_are_one_observation() -> None:
    (found,) = statistics.intervals(np.zeros((175, 1)), np.arange(175) // 5)
    (single,) = statistics.intervals(np.zeros((35, 1)), np.arange(35))
    assert found.high == pytest.approx(single.high)


def test_models_with_equal_results_do_not_differ() -> None:
    """Nor are they known to be equal: a few more queries might tell them apart."""
    values = hits(0, 35, 0.5)
    (found,) = statistics.differences(values, values, np.arange(35))
    assert (found.mean, found.p) == (0.0, 1.0)
    assert -10 < found.low < -3 < 3 < found.high < 10


def test_few_queries_that_all_improve_do_not_prove_it() -> None:
    """The bootstrap's interval was [100, 100] for any number of queries."""
    for queries, proven in ((2, False), (20, True)):
        better, worse = np.full((queries, 1), 100.0), np.zeros((queries, 1))
        (found,) = statistics.differences(better, worse, np.arange(queries))
        assert (found.mean, found.high) == (100.0, 100.0)
        assert (found.low > 0, found.p < 0.05) == (proven, proven)
        assert found.low < 90


def test_a_paired_test_finds_what_two_intervals_do_not() -> None:
    worse = hits(4, 1000, 0.5)
    better = worse.copy()
    better[np.flatnonzero(worse == 0)[:20]] = 100
    groups = np.arange(1000)
    (found,) = statistics.differences(better, worse, groups)
    (high,), (low,) = (statistics.intervals(v, groups) for v in (better, worse))
    assert high.low < low.high
    assert found.mean == pytest.approx(2)
    assert found.low > 0
    assert found.p < 0.001


def test_differences_are_antisymmetric() -> None:
    first, second = hits(5, 400, 0.55), hits(6, 400, 0.5)
    (one,) = statistics.differences(first, second, np.arange(400))
    (two,) = statistics.differences(second, first, np.arange(400))
    assert (one.mean, one.low, one.high) == pytest.approx((-two.mean, -two.high, -two.low))
    assert one.p == pytest.approx(two.p)


def test_p_is_uniform_if_nothing_differs_and_agrees_with_the_interval() -> None:
    small = 0
    for seed in range(200):
        first, second = hits(seed, 200, 0.5), hits(seed + 1000, 200, 0.5)
        (found,) = statistics.differences(first, second, np.arange(200))
        small += found.p < 0.1
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert 8 <= small <= 36


def test_no_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="group for every query"):
        statistics.intervals(np.zeros((0, 1)), np.zeros(0))
    with pytest.raises(ValueError, match="group for every query"):
        statistics.intervals(np.zeros((3, 1)), np.zeros(2))


def test_p_values_looked_at_together_are_corrected_as_holm_does() -> None:
    # By hand: 0.01 * 4, 0.02 * 3, max(0.06, 0.025 * 2), 0.5 * 1.
    assert statistics.holm([0.5, 0.01, 0.025, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
