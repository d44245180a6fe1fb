"""Bootstrap intervals of means, and the paired comparison of two models on the same queries.

The bootstrap resamples groups of queries, not single queries: the results of a picture's five captions are
correlated, and an interval that took them as independent would be too narrow.
Letters: Q queries, G groups, K metrics.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

LEVEL = 0.95
# Means of percentages that differ by less than this differ by rounding alone.
ROUNDING = 1e-9
# Draws held in memory at a time: 4M of them are 32 MB.
DRAWS = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % percentile bootstrap interval, in the unit of the values."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of `first - second`, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def intervals(
    values: Float[np.ndarray, "Q K"], groups: Shaped[np.ndarray, " Q"], resamples: int, seed: int
) -> list[Interval]:
    """The interval of each column's mean; queries of the same group are resampled together."""
    means = _resampled(values, groups, resamples, seed)
    low, high = _ends(means)
    return [Interval(*map(float, row)) for row in zip(values.mean(0), low, high, strict=True)]


def differences(
    first: Float[np.ndarray, "Q K"],
    second: Float[np.ndarray, "Q K"],
    groups: Shaped[np.ndarray, " Q"],
    resamples: int,
    seed: int,
) -> list[Difference]:
    """Paired bootstrap: each column's difference between two models on the same queries.

    p is twice the share of resamples on the smaller side of 0, with the observation itself counted, so that
    it is at least 2 / (resamples + 1); models with equal results have p = 1.
    """
    delta = first - second
    means = _resampled(delta, groups, resamples, seed)
    low, high = _ends(means)
    tail = np.minimum((means <= ROUNDING).sum(0), (means >= -ROUNDING).sum(0))
    p = np.minimum(1.0, 2 * (tail + 1) / (resamples + 1))
    return [Difference(*map(float, row)) for row in zip(delta.mean(0), low, high, p, strict=True)]


def _ends(means: np.ndarray) -> np.ndarray:
    return np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def _resampled(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means (resamples, K) over the queries of groups drawn with replacement."""
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(
            f"a bootstrap needs one group for every query: {len(values)} values, {len(groups)} groups"
        )
    names, group = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(group, column, len(names)) for column in values.T], 1)
    sizes = np.bincount(group, minlength=len(names))
    blocks = [(drawn @ sums) / (drawn @ sizes)[:, None] for drawn in _draws(len(names), resamples, seed)]
    return np.concatenate(blocks)


def _draws(groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of (resamples, G): how often each group was drawn, as floats for the matrix product."""
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS // groups)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(groups, size=(count, groups)) + groups * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups).astype(np.float64)
