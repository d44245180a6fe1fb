"""Which version may become the champion: gates on its numbers, and what must be known of it. Pure decisions.

Letters: Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from goal.config import Gate
from goal.evaluation import statistics

if TYPE_CHECKING:
    from rich.table import Table

# What must be known of a version, so that its numbers can be traced to data, parameters, code and run.
LINEAGE = {
    "goal.model": "the digest of its weights",
    "goal.name": "which model it is",
    "goal.data": "its data set",
    "goal.preset": "its set of parameters",
    "goal.deps": "the md5 of what its training read",
    "goal.outs": "the md5 of what its training wrote",
    "goal.lock": "its way through dvc.lock",
    "goal.commit": "its git commit",
    "goal.uncommitted": "whether its code was committed",
    "goal.evaluation.commit": "the git commit of its evaluation",
    "goal.evaluation.uncommitted": "whether the code of its evaluation was committed",
}
BENCHMARK = "goal.benchmark."


@dataclass(frozen=True)
class Answers:
    """One metric of one version, in percent: value and group of each query, and chance."""

    queries: tuple[tuple[str, ...], ...]
    groups: Shaped[np.ndarray, " Q"]
    values: Float[np.ndarray, " Q"]
    chance: float

    @property
    def mean(self) -> float:
        return float(self.values.mean())


@dataclass(frozen=True)
class Outcome:
    """What a gate said: the numbers that it looked at, in percent, and why."""

    gate: Gate
    candidate: float | None
    champion: float | None
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """The outcome of every gate for one version; `faults` are the reasons against it.

    alias: what it would get; champion: the version that has the alias now; new_data: they were not compared.
    """

    registered: str
    version: int
    alias: str
    champion: int | None
    new_data: bool
    outcomes: tuple[Outcome, ...]
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.faults

    def rich(self) -> "Table":
        """Every gate with its numbers, for a terminal."""
        from rich.table import Table

        against = f"against {self.alias} {self.champion}" if self.champion else f"no {self.alias} yet"
        table = Table(
            title=f"{self.registered} version {self.version}, {against}, percent", title_justify="left"
        )
        for title in ("gate", "benchmark", "metric"):
            table.add_column(title, no_wrap=True)
        for title in ("version", "champion"):
            table.add_column(title, justify="right")
        table.add_column("result")
        for one in self.outcomes:
            gate, result = one.gate, f"{'pass' if one.passed else 'FAIL'}: {one.reason}"
            numbers = ("" if value is None else f"{value:.2f}" for value in (one.candidate, one.champion))
            table.add_row(f"{gate.rule} {gate.value:g}", gate.benchmark, gate.metric, *numbers, result)
        return table


def check(gate: Gate, candidate: Answers | None, champion: Answers | None, first: bool) -> Outcome:
    """Judge one gate. first: there is no champion yet, and what compares with one passes.

    `improves` asks that the lower end of the paired 95 % interval of candidate - champion lies above the
    gate's value, so that with 0 the interval excludes zero; `above_chance` the same of candidate - chance.
    """
    if candidate is None:
        return Outcome(gate, None, None, False, "not measured")
    mean, other = candidate.mean, None
    if gate.rule == "minimum":
        passed = mean >= gate.value - statistics.ROUNDING
        reason = f"{mean:.2f} {'>=' if passed else '<'} {gate.value:g}"
    elif gate.rule == "above_chance":
        (found,) = statistics.intervals(candidate.values[:, None], candidate.groups)
        passed = found.low > candidate.chance + gate.value + statistics.ROUNDING
        reason = f"[{found.low:.2f}, {found.high:.2f}] {'above' if passed else 'not above'} "
        reason += f"chance {candidate.chance:.2f}" + (f" + {gate.value:g}" if gate.value else "")
    elif first:
        passed, reason = True, "no champion to compare with"
    elif champion is None or champion.queries != candidate.queries:
        passed, reason = False, "the champion did not answer the same queries"
    elif gate.rule == "max_drop":
        other = champion.mean
        passed = other - mean <= gate.value + statistics.ROUNDING
        reason = f"drop {other - mean:.2f} {'<=' if passed else '>'} {gate.value:g}"
    else:
        other = champion.mean
        differences = candidate.values[:, None], champion.values[:, None]
        (found,) = statistics.differences(*differences, candidate.groups)
        passed = found.low > gate.value + statistics.ROUNDING
        interval = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        reason = f"{interval} {'above' if passed else 'not above'} {gate.value:g}"
    return Outcome(gate, mean, other, passed, reason)


def missing(facts: Mapping[str, str], run_status: str | None) -> list[str]:
    """The facts of a version's lineage that are missing, as messages; empty if it is complete.

    facts: as goal.tracking.registry.facts gives them; run_status: of the run that it came from, None where
    there is none.
    """
    faults = [
        f"{what} is not recorded"
        for fact, what in LINEAGE.items()
        if facts.get(fact) in (None, "", "unknown")
    ]
    for fact, what in (("goal.uncommitted", "code"), ("goal.evaluation.uncommitted", "evaluation's code")):
        if facts.get(fact, "none") not in ("none", "unknown", ""):
            faults.append(f"its {what} was not committed: {facts[fact]}")
    if run_status is None:
        faults.append("it has no run")
    elif run_status != "FINISHED":
        faults.append(f"its run is {run_status}")
    return faults


def other_data(gates: Sequence[Gate], candidate: Mapping[str, str], champion: Mapping[str, str]) -> list[str]:
    """The gates' benchmarks, and `test`, whose pictures or texts differ in the facts of two versions."""
    names = dict.fromkeys(["test", *(gate.benchmark for gate in gates)])
    return [name for name in names if candidate.get(BENCHMARK + name) != champion.get(BENCHMARK + name)]
