"""What was asked of a version and what came out, as a value and as a table for a terminal."""

from dataclasses import dataclass

from rich.table import Table

from goal.tracking.gates import Outcome


@dataclass(frozen=True)
class Decision:
    """What was asked of a version and what came out; `faults` are reasons against it.

    alias: what it would get; champion: the version that has it, and which it would replace; new_data: that
    one's numbers were left out of account.
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

    def rich(self) -> Table:
        """Every gate with its numbers, for a terminal."""
        against = f"against {self.alias} {self.champion}" if self.champion else f"no {self.alias} yet"
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


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
