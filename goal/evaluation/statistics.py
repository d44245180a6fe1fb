"""Intervals of mean percentages, and the paired comparison of two models on the same queries.

The queries of one picture form a group: the results of its five captions are correlated, and an interval that
took them as independent would be too narrow. Both intervals count a few made-up groups beside the measured
ones, so that neither shrinks to a point where all queries agree, as the bootstrap does at 0 and 100 percent.
Letters: Q queries, G groups, K metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

# The normal quantile of a two-sided 95 % interval.
Z = 1.959964
# Means of percentages that differ by less than this differ by rounding alone.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval, in percent; the two ends differ in their distance."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Mean of `first - second`, its 95 % interval, in points, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def intervals(values: Float[np.ndarray, "Q K"], groups: Shaped[np.ndarray, " Q"]) -> list[Interval]:
    """Wilson's score interval of each column's mean; values in percent, 0 to 100.

    Its number of queries is the effective one: that of independent hits and misses whose mean varies as much
    as the mean of these groups. With one query per group it is G, and the interval of a rate is Wilson's own.
    The variance counts two groups of hits and two of misses more (Agresti and Coull's), so it is never 0.
    """
    sums, sizes = _by_group(values / 100, groups)
    count, size = sizes.sum(), sizes.mean()
    share = sums.sum(0) / count
    near = (sums.sum(0) + 2 * size) / (count + 4 * size)
    squares = ((sums - near * sizes) ** 2).sum(0) + 2 * size**2 * (near**2 + (1 - near) ** 2)
    queries = np.maximum(near * (1 - near) * (count + 4 * size) ** 2 / squares - 4, 1)
    centre = (share + Z**2 / (2 * queries)) / (1 + Z**2 / queries)
    half = Z / (1 + Z**2 / queries) * np.sqrt(share * (1 - share) / queries + Z**2 / (4 * queries**2))
    # Rounding must not put an end beyond the mean.
    low, high = np.minimum(centre - half, share), np.maximum(centre + half, share)
    return [Interval(*map(float, 100 * row)) for row in np.clip([share, low, high], 0, 1).T]


def differences(
    first: Float[np.ndarray, "Q K"], second: Float[np.ndarray, "Q K"], groups: Shaped[np.ndarray, " Q"]
) -> list[Difference]:
    """Each column's difference between two models on the same queries; values in percent, 0 to 100.

    Agresti and Min's interval for paired rates, which counts two pairs more: half a win, half a loss and one
    tie. Here they are groups. p belongs to the same interval: it is below 0.05 where that excludes 0.
    """
    sums, sizes = _by_group((first - second) / 100, groups)
    count, size = sizes.sum(), sizes.mean()
    near = sums.sum(0) / (count + 2 * size)
    squares = ((sums - near * sizes) ** 2).sum(0) + size**2 * (1 + 2 * near**2)
    error = np.sqrt(squares) / (count + 2 * size)
    low, high = np.clip([near - Z * error, near + Z * error], -1, 1)
    p = [math.erfc(abs(one) / math.sqrt(2)) for one in near / error]
    rows = zip(100 * sums.sum(0) / count, 100 * low, 100 * high, p, strict=True)
    return [Difference(*map(float, row)) for row in rows]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p-values that are looked at together: below 0.05, any false one is as rare."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = highest
    return corrected


def _by_group(
    values: Float[np.ndarray, "Q K"], groups: Shaped[np.ndarray, " Q"]
) -> tuple[Float[np.ndarray, "G K"], Float[np.ndarray, "G 1"]]:
    """The sum of each group's values and how many queries it has."""
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(
            f"an interval needs one group for every query: {len(values)} values, {len(groups)} groups"
        )
    names, group = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(group, column, len(names)) for column in values.T], 1)
    return sums, np.bincount(group, minlength=len(names)).astype(float)[:, None]
