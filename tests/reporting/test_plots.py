"""The figures of the report: axes that fit the values, and points that stand for few queries."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from goal.evaluation.results import Result
from goal.reporting import plots

WAYS = ("text_to_image", "image_to_text")


def result(model: str, mean: float, queries: dict[str, int]) -> Result:
    def numbers(count: int) -> dict[str, dict[str, float]]:
        one = {"mean": mean, "low": mean - 1, "high": mean + 2, "queries": count, "chance": 0.5}
        return {f"{way}_r1": one for way in WAYS}

    groups = {name: numbers(count) for name, count in queries.items()}
    by = {"tokens": groups, "attribute": groups}
    return Result(model, "net", "0" * 64, "test", {}, numbers(sum(queries.values())), by, "folder", {})


def joined(ax: Axes) -> list[list[bool]]:
    """For each line through points, which points it passes through."""
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    return [np.isfinite(line.get_ydata()).tolist() for line in lines]


@pytest.mark.parametrize("mean", [3.0, 60.0])
def test_the_axis_of_bars_ends_near_the_largest_value(mean: float) -> None:
    figure = plots.recall_bars(
        [result("stage2", mean, {"all": 9}), result("global", 2.0, {"all": 9})], "r1", "R@1"
    )
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert low == 0
        assert mean + 2 < high < 1.3 * (mean + 2)
        # The dashed line of chance.
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [0.5]


@pytest.mark.parametrize("mean", [3.0, 60.0])
def test_the_axis_of_groups_ends_near_the_largest_value(mean: float) -> None:
    figure = plots.by_group([result("stage2", mean, {"short": 300, "long": 300})], "tokens", "r1", "R@1")
    for ax in figure.axes:
        assert ax.get_ylim()[0] == 0
        assert mean + 2 < ax.get_ylim()[1] < 1.3 * (mean + 2)


def test_a_point_of_three_queries_is_not_joined_to_points_of_300() -> None:
    queries = {"<= 77": 300, "78-154": 300, "> 154": 3}
    found = [result("stage2", 50.0, queries), result("global", 40.0, queries)]
    for ax in plots.by_group(found, "tokens", "r1", "R@1").axes:
        assert joined(ax) == [[True, True, False]] * 2
    # Kinds do not follow on each other.
    for ax in plots.by_group(found, "attribute", "r1", "R@1").axes:
        assert joined(ax) == []


def test_a_group_without_queries_of_one_direction_has_no_point_there() -> None:
    one = result("stage2", 50.0, {"<= 77": 300, "78-154": 300, "> 154": 300})
    del one.by["tokens"]["<= 77"]["image_to_text_r1"]
    figure = plots.by_group([one], "tokens", "r1", "R@1")
    assert [len(ax.get_xticks()) for ax in figure.axes] == [3, 2]
