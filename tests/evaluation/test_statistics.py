"""The bootstrap against its definition, against theory, and on cases with a known result."""

import math

import numpy as np
import pytest

from goal.evaluation import statistics


def hits(seed: int, queries: int, share: float) -> np.ndarray:
    return (np.random.default_rng(seed).random((queries, 1)) < share).astype(float)


def test_interval_of_a_share_agrees_with_theory() -> None:
    values = hits(0, 2000, 0.7)
    (found,) = statistics.intervals(values, np.arange(2000), 2000, seed=0)
    mean = values.mean()
    half = 1.96 * math.sqrt(mean * (1 - mean) / 2000)
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(mean + half, abs=0.1 * half)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for seed in range(200):
        (found,) = statistics.intervals(hits(seed, 300, 0.6), np.arange(300), 300, seed=seed)
        covered += found.low <= 0.6 <= found.high
    assert 180 <= covered <= 199


def test_blocks_give_the_same_as_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=(40, 2))
    groups = np.repeat(np.arange(10), 4)
    drawn = np.random.default_rng(7)
    plain = []
    for _ in range(50):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn.integers(10, size=10)])
        plain.append(values[rows].mean(0))
    ends = np.quantile(plain, [0.025, 0.975], axis=0)
    monkeypatch.setattr(statistics, "DRAWS", 70)
    found = statistics.intervals(values, groups, 50, seed=7)
    np.testing.assert_allclose([[f.low for f in found], [f.high for f in found]], ends)


def test_correlated_captions_widen_the_interval() -> None:
    once = hits(1, 200, 0.5)
    five = np.repeat(once, 5, axis=0)
    (apart,) = statistics.intervals(five, np.arange(1000), 1000, seed=0)
    (together,) = statistics.intervals(five, np.repeat(np.arange(200), 5), 1000, seed=0)
    (single,) = statistics.intervals(once, np.arange(200), 1000, seed=0)
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert (together.low, together.high) == pytest.approx((single.low, single.high))


def test_the_seed_decides_everything() -> None:
    values = hits(2, 100, 0.5)
    first, again, other = (statistics.intervals(values, np.arange(100), 200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_models_with_equal_results_do_not_differ() -> None:
    values = hits(0, 100, 0.5)
    (found,) = statistics.differences(values, values, np.arange(100), 500, seed=0)
    assert found == statistics.Difference(0.0, 0.0, 0.0, 1.0)


def test_a_paired_test_finds_what_two_intervals_do_not() -> None:
    worse = hits(4, 1000, 0.5)
    better = worse.copy()
    better[np.flatnonzero(worse == 0)[:20]] = 1
    groups = np.arange(1000)
    (found,) = statistics.differences(better, worse, groups, 1000, seed=0)
    (high,), (low,) = (statistics.intervals(v, groups, 1000, seed=0) for v in (better, worse))
    assert high.low < low.high
    assert found.mean == pytest.approx(0.02)
    assert found.low > 0
    assert found.p == pytest.approx(2 / 1001)


def test_differences_are_antisymmetric() -> None:
    first, second = hits(5, 400, 0.55), hits(6, 400, 0.5)
    (one,) = statistics.differences(first, second, np.arange(400), 400, seed=3)
    (two,) = statistics.differences(second, first, np.arange(400), 400, seed=3)
    assert (one.mean, one.low, one.high) == pytest.approx((-two.mean, -two.high, -two.low))
    assert one.p == pytest.approx(two.p)


def test_p_is_uniform_if_nothing_differs() -> None:
    small = 0
    for seed in range(200):
        first, second = hits(seed, 200, 0.5), hits(seed + 1000, 200, 0.5)
        (found,) = statistics.differences(first, second, np.arange(200), 400, seed=seed)
        small += found.p < 0.1
    assert 8 <= small <= 36


def test_no_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="group for every query"):
        statistics.intervals(np.zeros((0, 1)), np.zeros(0), 10, seed=0)
    with pytest.raises(ValueError, match="group for every query"):
        statistics.intervals(np.zeros((3, 1)), np.zeros(2), 10, seed=0)


def test_resamples_that_differ_by_rounding_alone_count_on_both_sides() -> None:
    """A sum that is exactly 0 may come out as 1e-15 or -1e-15."""
    values = np.array([100 / 3, 200 / 3, -100.0, 0, 0, 0])
    exact = np.round(values * 3).astype(int)
    draws = np.concatenate(list(statistics._draws(6, 400, seed=0))).astype(int)
    sums = draws @ exact
    wanted = min((sums <= 0).sum(), (sums >= 0).sum())
    (found,) = statistics.differences(values[:, None], np.zeros((6, 1)), np.arange(6), 400, seed=0)
    assert found.p == pytest.approx(min(1.0, 2 * (wanted + 1) / 401))
