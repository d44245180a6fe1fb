"""Two models on the same queries: the difference, its interval and how likely chance alone is."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from goal.errors import UserError
from goal.evaluation import answers, results, statistics


@dataclass(frozen=True)
class Line:
    """One metric of two models, in percent; the difference is first - second."""

    benchmark: str
    metric: str
    first: float
    second: float
    difference: statistics.Difference
    queries: int


def compare(first: str, second: str, ks: Sequence[int], resamples: int, seed: int) -> list[Line]:
    """Every metric of the benchmarks that both models were measured on, paired by query.

    Raises UserError where a model has no results, or the two were not asked the same.
    """
    measured = results.load([first, second])
    lines = []
    for benchmark in measured.benchmarks:
        if not (measured.of(first, benchmark) and measured.of(second, benchmark)):
            continue
        left, right = read(first, benchmark), read(second, benchmark)
        if left.select(answers.KEY) != right.select(answers.KEY):
            raise UserError(
                f"{results.ranks(second, benchmark)}: not the queries of {first}; "
                f"{results.command(benchmark, second)} makes it anew"
            )
        sides = zip(answers.by_direction(left), answers.by_direction(right), strict=True)
        for (direction, one), (_, two) in sides:
            names, values = answers.columns(one, ks)
            _, others = answers.columns(two, ks)
            found = statistics.differences(values, others, one["id"].to_numpy(), resamples, seed)
            means = zip(names, values.mean(0), others.mean(0), found, strict=True)
            lines += [
                Line(benchmark, f"{direction}_{name}", float(a), float(b), difference, len(values))
                for name, a, b, difference in means
            ]
    return lines


def read(model: str, benchmark: str) -> pa.Table:
    """The per-query answers of a model; raises UserError where there are none."""
    path = results.ranks(model, benchmark)
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read; {results.command(benchmark, model)} makes it") from error


def rich(first: str, second: str, lines: Sequence[Line]) -> Table:
    """The comparison for a terminal."""
    table = Table(title=f"{first} against {second}, percent, paired by query", title_justify="left")
    for title in ("benchmark", "metric"):
        table.add_column(title, no_wrap=True)
    for title in (first, second, "difference", "95 % interval", "p", "queries"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        found = line.difference
        table.add_row(
            line.benchmark,
            line.metric,
            f"{line.first:.2f}",
            f"{line.second:.2f}",
            f"{found.mean:+.2f}",
            f"[{found.low:+.2f}, {found.high:+.2f}]",
            f"{found.p:.3f}",
            str(line.queries),
        )
    return table
