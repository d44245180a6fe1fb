"""What a version must show to become the champion: gates, lineage, the same benchmark data."""

import numpy as np
import pytest

from goal.config import Gate
from goal.tracking import gates
from goal.tracking.gates import Answers

LINEAGE = dict.fromkeys(gates.LINEAGE, "known")
LINEAGE |= {"goal.uncommitted": "none", "goal.evaluation.uncommitted": "none"}


def gate(rule: str, value: float, metric: str = "text_to_image_r1") -> Gate:
    return Gate(benchmark="test", metric=metric, rule=rule, value=value)


def answers(values: list[float], prefix: str = "p") -> Answers:
    queries = tuple((f"{prefix}{number}",) for number in range(len(values)))
    return Answers(queries, np.array([query[0] for query in queries]), np.array(values, float), chance=2.5)


def passes(rule: str, value: float, candidate: Answers | None, champion: Answers | None) -> bool:
    outcome = gates.check(gate(rule, value), candidate, champion, champion is None)
    return outcome.passed


@pytest.mark.parametrize(("value", "wanted"), [(49.9, True), (50.0, True), (50.1, False)])
def test_minimum(value: float, wanted: bool) -> None:
    assert passes("minimum", value, answers([0, 100]), answers([100, 100])) is wanted


@pytest.mark.parametrize(("value", "wanted"), [(25.0, True), (24.9, False)])
def test_max_drop_counts_points_below_the_champion(value: float, wanted: bool) -> None:
    champion, candidate = answers([100, 100, 100, 100]), answers([100, 100, 100, 0])
    assert passes("max_drop", value, candidate, champion) is wanted
    assert passes("max_drop", 0.0, champion, candidate)


def test_improves_asks_that_the_paired_interval_excludes_zero() -> None:
    draw = np.random.default_rng(0)
    champion = (draw.random(400) < 0.5) * 100.0
    better = np.where(draw.random(400) < 0.2, 100.0, champion)
    assert passes("improves", 0.0, answers(list(better)), answers(list(champion)))
    # Two queries more of 400: a higher mean, but chance explains it.
    slightly = champion.copy()
    slightly[np.flatnonzero(champion == 0)[:3]] = 100
    slightly[np.flatnonzero(champion == 100)[0]] = 0
    assert slightly.mean() > champion.mean()
    assert not passes("improves", 0.0, answers(list(slightly)), answers(list(champion)))
    assert not passes("improves", 0.0, answers(list(champion)), answers(list(champion)))


def test_above_chance_asks_that_the_interval_excludes_chance() -> None:
    """Chance is 2.5 here: 2 of 35 are more, but not enough to tell; a few more are."""
    assert not passes("above_chance", 0.0, answers([100.0] * 2 + [0.0] * 33), None)
    assert passes("above_chance", 0.0, answers([100.0] * 5 + [0.0] * 30), None)
    assert not passes("above_chance", 10.0, answers([100.0] * 5 + [0.0] * 30), None)
    assert not passes("above_chance", 0.0, answers([0.0] * 35), None)


def test_a_champion_of_few_queries_is_not_beaten_by_chance() -> None:
    """Two of two queries that improve: the bootstrap's interval was [100, 100]."""
    assert not passes("improves", 0.0, answers([100.0] * 2), answers([0.0] * 2))


def test_improves_by_more_than_a_margin() -> None:
    champion = [0.0] * 50 + [100.0] * 50
    better = [100.0] * 100
    assert passes("improves", 30.0, answers(better), answers(champion))
    assert not passes("improves", 50.0, answers(better), answers(champion))


def test_a_metric_that_was_not_measured_fails_and_a_first_champion_needs_no_other() -> None:
    for rule in ("minimum", "above_chance", "max_drop", "improves"):
        assert not passes(rule, 0.0, None, None)
        assert passes(rule, 0.0, answers([50] * 20), None)


def test_numbers_over_other_queries_are_not_compared() -> None:
    for rule in ("max_drop", "improves"):
        outcome = gates.check(gate(rule, 0.0), answers([100.0]), answers([0.0], "q"), False)
        assert not outcome.passed
        assert "same queries" in outcome.reason


@pytest.mark.parametrize("tag", sorted(gates.LINEAGE))
def test_a_version_that_lacks_a_part_of_its_lineage_is_named_for_it(tag: str) -> None:
    assert gates.missing(LINEAGE, "FINISHED") == []
    (fault,) = gates.missing({key: value for key, value in LINEAGE.items() if key != tag}, "FINISHED")
    assert gates.LINEAGE[tag] in fault


@pytest.mark.parametrize(
    ("tags", "status", "words"),
    [
        ({"goal.commit": "unknown"}, "FINISHED", "its git commit is not recorded"),
        ({"goal.uncommitted": "goal/a.py"}, "FINISHED", "not committed: goal/a.py"),
        (
            {"goal.evaluation.uncommitted": "goal/a.py"},
            "FINISHED",
            "evaluation's code was not committed: goal/a.py",
        ),
        ({}, None, "it has no run"),
        ({}, "KILLED", "its run is KILLED"),
    ],
)
def test_faults_of_a_lineage(tags: dict[str, str], status: str | None, words: str) -> None:
    (fault,) = gates.missing(LINEAGE | tags, status)
    assert words in fault


def test_other_benchmark_data_is_named() -> None:
    asked = [gate("minimum", 0.0), Gate(benchmark="short", metric="r1", rule="max_drop", value=1.0)]
    mine = {"goal.benchmark.test": "a", "goal.benchmark.short": "b", "goal.benchmark.joint": "c"}
    assert gates.other_data(asked, mine, mine | {"goal.benchmark.joint": "x"}) == []
    assert gates.other_data(asked, mine, mine | {"goal.benchmark.short": "x"}) == ["short"]
    assert gates.other_data(asked, mine, {"goal.benchmark.short": "b"}) == ["test"]


def test_a_drop_of_exactly_the_limit_passes() -> None:
    """5 of 500 are a point; some differences of two such percentages are a little more in floating point."""
    for right in range(5, 500):
        champion, candidate = (
            answers([100.0] * count + [0.0] * (500 - count)) for count in (right, right - 5)
        )
        assert passes("max_drop", 1.0, candidate, champion), right
        assert not passes("max_drop", 0.8, candidate, champion), right
