"""What was asked of a version and what came out, as a value and as a table for a terminal."""

from dataclasses import dataclass

from rich.table import Table

from goal.tracking.gates import Outcome


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
        for one in self.outcomes:
            gate, result = one.gate, f"{'pass' if one.passed else 'FAIL'}: {one.reason}"
            numbers = ("" if value is None else f"{value:.2f}" for value in (one.candidate, one.champion))
            table.add_row(f"{gate.rule} {gate.value:g}", gate.benchmark, gate.metric, *numbers, result)
        return table
