"""Promotion and rollback of the registered model: gates, then moves of aliases.

MLflow moves one alias at a time. A promotion points `previous` at the old champion, then `champion` at the
version, and then writes its reason. Killed in between, it leaves one champion, the old or the new one; run
again, the same promotion does what is missing, or finds that the version is the champion already.

MLflow cannot move an alias on a condition. So a promotion holds a file lock in the project folder, which all
machines that share the folder see and a killed process releases, and checks that the champion is still the
one that the version was judged against. Project folders that only share a server have this check alone, right
before and after the move: of two moves in the same moment both may succeed, and the later one holds.
"""

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from goal.config import Gate, Params, paths
from goal.errors import UserError
from goal.evaluation import query_metrics
from goal.evaluation.galleries import DIRECTIONS
from goal.runtime import locks, signals
from goal.tracking import gates, lineage, mlflow_store, registry
from goal.tracking.gates import Answers, Decision, Outcome
from goal.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from goal.tracking.registry import MlflowClient, ModelVersion

log = logging.getLogger("goal.promotion")

DECISION = "goal.decision"
# Of the registered model: the version that these functions gave the alias last.
MOVED = "goal.champion"
# The champion before this one: where `previous` goes on a rollback.
PREDECESSOR = "goal.predecessor"
# Aliases that mean something else, here or to MLflow.
RESERVED = re.compile(rf"{CHALLENGER}|{PREVIOUS}.*|latest|[vV]\d+")


class HasAlias(UserError):
    """The version to promote has the alias already."""


def judge(
    params: Params, version: int | None = None, new_data: bool = False, alias: str = CHAMPION
) -> Decision:
    """Measure a version (None: the challenger) against the gates, without changing anything.

    new_data: the benchmark was changed on purpose: the champion's numbers are ignored.
    alias: another than `champion` has a champion of its own, served beside it.
    Raises UserError where there is no such version or alias, HasAlias where it is the champion already.
    """
    _previous(alias)
    name = params.register_.name
    with mlflow_store.answering():
        client = mlflow_store.connect()
        candidate, champion = _find(client, name, version), _holder(client, name, alias)[0]
        if champion is not None and champion.version == candidate.version:
            raise HasAlias(f"{name} version {candidate.version} is the {alias} already")
        status, other = registry.run_status(client, candidate), None if new_data else champion
        with tempfile.TemporaryDirectory() as folder:
            mine = registry.fetch(client, candidate, Path(folder) / "version")
            theirs = registry.fetch(client, other, Path(folder) / "champion") if other else None
            facts = registry.facts(candidate, mine)
            faults = gates.missing(facts, status)
            if other is not None and theirs is not None:
                measured_on = registry.facts(other, theirs)
                faults += [
                    f"{benchmark}: other pictures or texts than {alias} {other.version} was measured on"
                    for benchmark in gates.other_data(params.promote.gates, facts, measured_on)
                ]
            outcomes = tuple(_outcomes(params, mine, theirs))
    failed = [one for one in outcomes if not one.passed]
    faults += [f"{one.gate.benchmark} {one.gate.metric} {one.gate.rule}: {one.reason}" for one in failed]
    number, old = int(candidate.version), int(champion.version) if champion else None
    return Decision(name, number, alias, old, new_data, outcomes, tuple(faults))


def promote(params: Params, decision: Decision, reason: str) -> None:
    """Make a judged version the champion, unless it failed or another promotion came first.

    The old champion gets the alias `previous`. `reason` and the decision are recorded on the version.
    """
    name, number, alias = decision.registered, str(decision.version), decision.alias
    with mlflow_store.answering():
        client = mlflow_store.connect()
        if not decision.passed:
            faults = "; ".join(decision.faults)
            _record(client, name, number, f"refused: {faults}" + (f"; asked for: {reason}" if reason else ""))
            raise UserError(f"{name} version {number}: not promoted: {faults}")
        with _moving(client, name, alias, decision.champion, decision.version):
            replaced = f"replaces version {decision.champion}" if decision.champion else f"the first {alias}"
            replaced += ", not compared with it: the benchmark is new" if decision.new_data else ""
            if decision.champion:
                client.set_model_version_tag(name, number, _own(PREDECESSOR, alias), str(decision.champion))
                client.set_registered_model_alias(name, _previous(alias), str(decision.champion))
            _move(client, name, alias, number)
            _record(client, name, number, f"promoted: {reason or 'all gates passed'}; {replaced}")
    log.info("%s version %s is the %s; %s", name, number, alias, replaced)


def rollback(params: Params, reason: str, alias: str = CHAMPION, to: int | None = None) -> None:
    """Give the alias back to the version that had it before, and `previous` to the one before that.

    An alias that was moved outside goes back to where promote or rollback left it. to: the version that gets
    the alias instead; no gate is asked. Raises UserError where there is nothing to go back to.
    """
    name, back = params.register_.name, _previous(alias)
    with mlflow_store.answering():
        client = mlflow_store.connect()
        holder, left = _holder(client, name, alias)
        target = _find(client, name, to or left) if to or left else registry.by_alias(client, name, back)
        if target is None:
            how = "`goal rollback --to N` gives the alias to version N"
            raise UserError(
                f"{name}: no version has the alias `{back}`: there is nothing to go back to; {how}"
            )
        old, new = int(holder.version) if holder else None, int(target.version)
        if old == new:
            raise HasAlias(f"{name} version {new} is the {alias} already")
        with _moving(client, name, alias, old, new):
            _move(client, name, alias, str(new))
            before = target.tags.get(_own(PREDECESSOR, alias))
            if before:
                client.set_registered_model_alias(name, back, before)
            elif registry.by_alias(client, name, back):
                client.delete_registered_model_alias(name, back)
            if old:
                _record(client, name, str(old), f"rolled back to version {new}: {reason}")
            _record(client, name, str(new), f"{alias} again after version {old or 'none'}: {reason}")
    log.info("%s version %s is the %s again; it was %s", name, new, alias, old or "none")


def _holder(client: "MlflowClient", name: str, alias: str) -> "tuple[ModelVersion | None, int | None]":
    """The version with the alias; and where this module left the alias, if something else moved it since."""
    version = registry.by_alias(client, name, alias)
    left = registry.tags(client, name).get(_own(MOVED, alias))
    found = str(version.version) if version else None
    if left is None or left == found:
        return version, None
    log.warning(
        "%s: the alias `%s` was moved outside `goal promote` and `goal rollback`: from version %s to %s",
        name, alias, left, found or "none",
    )  # fmt: skip
    return version, int(left)


def _move(client: "MlflowClient", name: str, alias: str, number: str) -> None:
    client.set_registered_model_alias(name, alias, number)
    client.set_registered_model_tag(name, _own(MOVED, alias), number)


def _previous(alias: str) -> str:
    """The alias of the version before the one that has `alias`."""
    if RESERVED.fullmatch(alias) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", alias):
        raise UserError(
            f"--alias {alias!r}: expected letters, digits, - and _, and none that has another meaning"
        )
    return PREVIOUS if alias == CHAMPION else f"{PREVIOUS}-{alias}"


def _own(tag: str, alias: str) -> str:
    """The tag of an alias."""
    return tag if alias == CHAMPION else f"{tag}.{alias}"


def _find(client: "MlflowClient", name: str, number: int | None) -> "ModelVersion":
    if number is None:
        version, what = registry.by_alias(client, name, CHALLENGER), f"with the alias `{CHALLENGER}`"
    else:
        version, what = registry.by_number(client, name, number), str(number)
    if version is None:
        raise UserError(f"the registered model {name} has no version {what}; `goal register` makes one")
    return version


def _outcomes(params: Params, mine: Path, theirs: Path | None) -> Iterator[Outcome]:
    for gate in params.promote.gates:
        own, other = _answers(mine, gate), _answers(theirs, gate) if theirs else None
        yield gates.check(gate, own, other, theirs is None)


def _answers(folder: Path, gate: Gate) -> Answers | None:
    """What a version answered to the queries of a gate; None where it was not asked."""
    direction = next((one for one in DIRECTIONS if gate.metric.startswith(f"{one}_")), None)
    data_set, _, benchmark = gate.benchmark.rpartition("/")
    try:
        ranks = paths.numbers_on(folder, data_set) / "ranks" / f"{benchmark}.parquet"
        rows = pq.read_table(ranks, partitioning=None)
    except (OSError, pa.ArrowException):
        return None
    if direction is None:
        return None
    name = gate.metric.removeprefix(f"{direction}_")
    chosen = dict(query_metrics.by_direction(rows))[direction]
    ks = [1, int(name[1:])] if name[:1] == "r" and name[1:].isdigit() else [1]
    shown = query_metrics.shown(rows, ks)
    names, values = query_metrics.metric_values(chosen, shown[direction])
    if name not in names or not len(chosen):
        return None
    chance = query_metrics.chance(rows, shown)[gate.metric]
    queries = tuple(zip(*(map(str, chosen[column].to_pylist()) for column in query_metrics.KEY), strict=True))
    return Answers(queries, chosen["id"].to_numpy(), values[:, names.index(name)], chance)


@contextlib.contextmanager
def _moving(
    client: "MlflowClient", name: str, alias: str, champion: int | None, version: int
) -> Iterator[None]:
    """Hold the lock of promotions while the alias moves from `champion` to `version`.

    A first SIGTERM or SIGINT lets what has begun end. Raises UserError where another promotion moves it.
    """
    lock = locks.held(paths.work_dir("promotion") / f"{name}.lock")
    with signals.deferred(), lock:
        _expect(client, name, alias, champion, "nothing was changed, run it again")
        yield
        _expect(client, name, alias, version, "look at its result")


def _expect(client: "MlflowClient", name: str, alias: str, wanted: int | None, what: str) -> None:
    found = registry.by_alias(client, name, alias)
    number = int(found.version) if found else None
    if number != wanted:
        raise UserError(
            f"{name}: another promotion came first: the {alias} is version {number}, not {wanted}; {what}"
        )


def _record(client: "MlflowClient", name: str, number: str, text: str) -> None:
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    client.set_model_version_tag(name, number, DECISION, f"{when}, {lineage.user()}: {text}")
