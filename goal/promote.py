"""Promotion and rollback of the registered model: gates, then one atomic move of the alias `champion`."""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from goal import interrupts, registry
from goal.config import Gate, Params
from goal.errors import UserError
from goal.evaluation import answers
from goal.record import lineage, promotion
from goal.record.promotion import Answers, Outcome
from goal.registry import CHALLENGER, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from goal.registry import MlflowClient, ModelVersion

log = logging.getLogger("goal.promote")

DECISION = "goal.decision"
# The champion before this one: where `previous` goes on a rollback.
PREDECESSOR = "goal.predecessor"
# What makes a query the same one in two files.
KEY = ("direction", "id", "part", "caption")


@dataclass(frozen=True)
class Decision:
    """What was asked of a version and what came out; `faults` are reasons against it.

    champion: the version it would replace; new_data: that one's numbers were left out of account.
    """

    registered: str
    version: int
    champion: int | None
    new_data: bool
    outcomes: tuple[Outcome, ...]
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.faults

    def rich(self) -> Table:
        """Every gate with its numbers, for a terminal."""
        against = f"against champion {self.champion}" if self.champion else "no champion yet"
        table = Table(
            title=f"{self.registered} version {self.version}, {against}, percent", title_justify="left"
        )
        for title in ("gate", "benchmark", "metric"):
            table.add_column(title, no_wrap=True)
        for title in ("version", "champion"):
            table.add_column(title, justify="right")
        table.add_column("result")
        for row in self.rows():
            table.add_row(*row)
        return table

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of that table."""
        return [
            (
                f"{outcome.gate.rule} {outcome.gate.value:g}",
                outcome.gate.benchmark,
                outcome.gate.metric,
                _number(outcome.candidate),
                _number(outcome.champion),
                f"{'pass' if outcome.passed else 'FAIL'}: {outcome.reason}",
            )
            for outcome in self.outcomes
        ]


def judge(params: Params, version: int | None = None, new_data: bool = False) -> Decision:
    """Hold a version (None: the challenger) to the gates, and change nothing.

    new_data: the benchmark was changed on purpose: the champion's numbers are left out of account.
    Raises UserError where there is no such version, or it is the champion already.
    """
    with registry.answering():
        return _judge(registry.connect(), params, version, new_data)


def promote(params: Params, decision: Decision, reason: str) -> None:
    """Make a judged version the champion, unless it failed or another promotion came first.

    The old champion gets the alias `previous`. `reason` and the decision are recorded on the version.
    """
    name, number = decision.registered, str(decision.version)
    with registry.answering():
        client = registry.connect()
        if not decision.passed:
            faults = "; ".join(decision.faults)
            _record(client, name, number, f"refused: {faults}" + (f"; asked for: {reason}" if reason else ""))
            raise UserError(f"{name} version {number}: not promoted: {faults}")
        with _alone(client, name):
            _unchanged(client, name, decision.champion)
            replaced = f"replaces version {decision.champion}" if decision.champion else "the first champion"
            replaced += ", not compared with it: the benchmark is new" if decision.new_data else ""
            if decision.champion:
                client.set_model_version_tag(name, number, PREDECESSOR, str(decision.champion))
                client.set_registered_model_alias(name, PREVIOUS, str(decision.champion))
            client.set_registered_model_alias(name, CHAMPION, number)
            _record(client, name, number, f"promoted: {reason or 'all gates passed'}; {replaced}")
    log.info("%s version %s is the champion; %s", name, number, replaced)


def rollback(params: Params, reason: str) -> None:
    """Make `previous` the champion again, and the champion before that one `previous`."""
    name = params.register_.name
    with registry.answering():
        client = registry.connect()
        champion = registry.by_alias(client, name, CHAMPION)
        previous = registry.by_alias(client, name, PREVIOUS)
        if champion is None or previous is None:
            raise UserError(f"{name}: no version has the alias `{PREVIOUS}`; there is nothing to go back to")
        with _alone(client, name):
            _unchanged(client, name, int(champion.version))
            client.set_registered_model_alias(name, CHAMPION, previous.version)
            before = previous.tags.get(PREDECESSOR)
            if before:
                client.set_registered_model_alias(name, PREVIOUS, before)
            else:
                client.delete_registered_model_alias(name, PREVIOUS)
            _record(client, name, champion.version, f"rolled back to version {previous.version}: {reason}")
            _record(
                client, name, previous.version, f"champion again after version {champion.version}: {reason}"
            )
    log.info("%s version %s is the champion again; it was %s", name, previous.version, champion.version)


def unlock(params: Params) -> None:
    """Remove the lock that a killed promotion left."""
    with registry.answering():
        client = registry.connect()
        held = registry.registered_model(client, _lock(params.register_.name))
        if held is None:
            log.info("%s: no promotion holds a lock", params.register_.name)
            return
        client.delete_registered_model(held.name)
    log.info("removed: %s", held.description)


def _judge(client: "MlflowClient", params: Params, number: int | None, new_data: bool) -> Decision:
    name = params.register_.name
    version = _find(client, name, number)
    champion = registry.by_alias(client, name, CHAMPION)
    if champion is not None and champion.version == version.version:
        raise UserError(f"{name} version {version.version} is the champion already")
    gates = params.promote.gates
    faults = promotion.missing(version.tags, registry.run_status(client, version))
    if champion is not None and not new_data:
        faults += [
            f"{benchmark}: other pictures or texts than champion {champion.version} was measured on"
            for benchmark in promotion.other_data(gates, version.tags, champion.tags)
        ]
    compared = None if new_data else champion
    outcomes = _outcomes(client, gates, version, compared, params.evaluate.bootstrap, params.seed)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    faults += [f"{one.gate.benchmark} {one.gate.metric} {one.gate.rule}: {one.reason}" for one in failed]
    return Decision(
        registered=name,
        version=int(version.version),
        champion=int(champion.version) if champion else None,
        new_data=new_data,
        outcomes=outcomes,
        faults=tuple(faults),
    )


def _find(client: "MlflowClient", name: str, number: int | None) -> "ModelVersion":
    if number is None:
        version = registry.by_alias(client, name, CHALLENGER)
        what = f"no version with the alias `{CHALLENGER}`"
    else:
        version = registry.by_number(client, name, number)
        what = f"no version {number}"
    if version is None:
        raise UserError(f"{name}: {what}; `goal register` makes one")
    return version


def _outcomes(
    client: "MlflowClient",
    gates: Sequence[Gate],
    version: "ModelVersion",
    champion: "ModelVersion | None",
    resamples: int,
    seed: int,
) -> tuple[Outcome, ...]:
    with tempfile.TemporaryDirectory() as folder:
        mine = registry.fetch(client, version, Path(folder) / "version")
        theirs = registry.fetch(client, champion, Path(folder) / "champion") if champion else None
        return tuple(
            promotion.check(
                gate,
                _answers(mine, gate),
                _answers(theirs, gate) if theirs else None,
                champion is None,
                resamples,
                seed,
            )
            for gate in gates
        )


def _answers(folder: Path, gate: Gate) -> Answers | None:
    """What a version answered to the queries of a gate; None where it was not asked."""
    direction = next((one for one in answers.DIRECTIONS if gate.metric.startswith(f"{one}_")), None)
    try:
        rows = pq.read_table(folder / "ranks" / f"{gate.benchmark}.parquet", partitioning=None)
    except (OSError, pa.ArrowException):
        return None
    if direction is None:
        return None
    name = gate.metric.removeprefix(f"{direction}_")
    chosen = dict(answers.by_direction(rows))[direction]
    ks = [int(name[1:])] if name[:1] == "r" and name[1:].isdigit() else []
    names, values = answers.columns(chosen, ks)
    if name not in names or not len(chosen):
        return None
    queries = tuple(zip(*(map(str, chosen[column].to_pylist()) for column in KEY), strict=True))
    return Answers(queries, chosen["id"].to_numpy(), values[:, names.index(name)])


def _unchanged(client: "MlflowClient", name: str, champion: int | None) -> None:
    """Refuse where the champion is no longer the one that was looked at."""
    now = registry.by_alias(client, name, CHAMPION)
    number = int(now.version) if now else None
    if number != champion:
        raise UserError(
            f"{name}: another promotion came first: the champion is version {number}, it was {champion} "
            "when this one was judged; nothing was changed, run it again"
        )


@contextlib.contextmanager
def _alone(client: "MlflowClient", name: str) -> Iterator[None]:
    """Hold the registry's lock on promotions, whichever store or server keeps the registry.

    MLflow has no compare-and-set, but makes a registered model of a given name only once: the lock is such a
    model. A first SIGTERM or SIGINT lets what has begun end; the lock that a kill leaves, `unlock` removes.
    Raises UserError where another holds it.
    """
    lock, token = _lock(name), secrets.token_hex(8)
    holder = f"process {os.getpid()} on {socket.gethostname()} since {_now()}"
    with interrupts.taken_down():
        with registry.unless(registry.ALREADY | registry.GONE):
            client.create_registered_model(lock, {"goal.lock": token}, f"lock of `goal promote`: {holder}")
        held = registry.registered_model(client, lock)
        if held is None or held.tags.get("goal.lock") != token:
            said = held.description if held else "it has just ended"
            raise UserError(
                f"{name}: another promotion is under way ({said}); nothing was changed: look at its result "
                "and run it again (if that process was killed: `goal promote --unlock`)"
            )
        try:
            yield
        finally:
            client.delete_registered_model(lock)


def _lock(name: str) -> str:
    return f"{name}.promotion-lock"


def _record(client: "MlflowClient", name: str, number: str, text: str) -> None:
    client.set_model_version_tag(name, number, DECISION, f"{_now()}, {lineage.user()}: {text}")


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
