"""Two models on the same queries: the difference of each metric, its interval and its p-value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from goal.errors import UserError
from goal.evaluation import query_metrics, results, statistics
from goal.evaluation.galleries import DIRECTIONS


@dataclass(frozen=True)
class Line:
    """One metric of two models and of a random order, in percent; the difference is first - second."""

    benchmark: str
    metric: str
    first: float
    second: float
    chance: float
    difference: statistics.Difference
    queries: int


def compare(first: str, second: str, ks: Sequence[int]) -> list[Line]:
    """Every metric of the benchmarks on which both models were measured, paired by query.

    The p-values are corrected for the number of lines (Holm); the intervals are each their own.
    Raises UserError for a model without results and for two that were measured on different queries.
    """
    measured = results.load([first, second])
    lines = []
    for benchmark in measured.benchmarks:
        if not (measured.of(first, benchmark) and measured.of(second, benchmark)):
            continue
        left, right = read(first, benchmark), read(second, benchmark)
        if left.select(query_metrics.KEY) != right.select(query_metrics.KEY):
            raise UserError(
                f"{results.ranks(second, benchmark)}: its queries differ from those of {first}; "
                f"run {results.command(benchmark, first, second)}"
            )
        shown = query_metrics.shown(left, ks)
        chance = query_metrics.chance(left, shown)
        sides = zip(query_metrics.by_direction(left), query_metrics.by_direction(right), strict=True)
        for (direction, one), (_, two) in sides:
            names, values = query_metrics.metric_values(one, shown[direction])
            _, others = query_metrics.metric_values(two, shown[direction])
            found = statistics.differences(values, others, one["id"].to_numpy())
            lines += [
                Line(
                    *(benchmark, f"{direction}_{name}", float(a), float(b)),
                    *(chance[f"{direction}_{name}"], difference, len(values)),
                )
                for name, a, b, difference in zip(names, values.mean(0), others.mean(0), found, strict=True)
            ]
    corrected = statistics.holm([line.difference.p for line in lines])
    return [
        replace(line, difference=replace(line.difference, p=p))
        for line, p in zip(lines, corrected, strict=True)
    ]


def leaders(measured: results.Results) -> dict[tuple[str, str], str]:
    """The model that leads a headline metric, by (benchmark, metric), where its lead is more than chance.

    The paired interval of its difference to every other model lies above 0.
    """
    found = {}
    for label, group in measured.benchmarks.items():
        rows = [dict(query_metrics.by_direction(read(one.model, label))) for one in group]
        for direction in DIRECTIONS:
            values = [query_metrics.metric_values(one[direction], [1])[1] for one in rows]
            best = max(range(len(group)), key=lambda place: values[place].mean())
            ids = rows[best][direction]["id"].to_numpy()
            others = [other for place, other in enumerate(values) if place != best]
            lows = [statistics.differences(values[best], other, ids)[0].low for other in others]
            if lows and min(lows) > statistics.ROUNDING:
                found[label, f"{direction}_{results.headline(label)}"] = group[best].model
    return found


def read(model: str, benchmark: str) -> pa.Table:
    """The per-query results of a model; raises UserError if they cannot be read."""
    path = results.ranks(model, benchmark)
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read; run {results.command(benchmark, model)}") from error


def rich(first: str, second: str, lines: Sequence[Line]) -> Table:
    """The comparison for a terminal."""
    table = Table(
        title=f"{first} against {second}, percent, paired by query",
        title_justify="left",
        caption="One training each: what another seed would change is not in these intervals "
        "(python -m benchmarks.methods trains several).",
        caption_justify="left",
    )
    for title in ("benchmark", "metric"):
        table.add_column(title, no_wrap=True)
    for title in (first, second, "chance", "difference", "95 % interval", "p (Holm)", "queries"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in lines:
        found = line.difference
        table.add_row(
            line.benchmark,
            line.metric,
            f"{line.first:.2f}",
            f"{line.second:.2f}",
            f"{line.chance:.2f}",
            f"{found.mean:+.2f}",
            f"[{found.low:+.2f}, {found.high:+.2f}]",
            f"{found.p:.3f}",
            str(line.queries),
        )
    return table
