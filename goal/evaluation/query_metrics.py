"""Metrics of a benchmark from its per-query results: means, intervals, and breakdowns by groups of queries.

Letters: Q queries, K metrics.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from goal.evaluation import statistics
from goal.evaluation.galleries import DIRECTIONS

JOINT_K = 10
# Upper ends, in tokens with BOS and EOS: OpenAI's context, twice that, the stretched context.
TOKEN_BINS = (77, 154, 248)
SENTENCE_BINS = (1, 3, 5, 8, 12)
# One row per query. id: the test picture; part: see ranking.PARTS; caption: number of the text among those of
# its picture, -1 for a picture; tokens, sentences: of the text, for a picture of its longest text; attribute:
# what differs between the twins.
QUERY = pa.schema(
    [
        ("direction", pa.string()),
        ("id", pa.string()),
        ("part", pa.string()),
        ("caption", pa.int32()),
        ("tokens", pa.int32()),
        ("sentences", pa.int32()),
        ("attribute", pa.string()),
    ]
)
# The columns that identify a query, to pair the rows of two models.
KEY = ("direction", "id", "part", "caption")
# The result of a query: each benchmark has one of these columns.
RANK = pa.field("rank", pa.int32())
AVERAGE_PRECISION = pa.field("average_precision", pa.float64())
CORRECT = pa.field("correct", pa.bool_())


def metric_values(rows: pa.Table, ks: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Names of the metrics of these rows, and their values per query (Q, K) in percent."""
    if RANK.name in rows.column_names:
        # A picture without a text has rank 0 (goal.metrics): nothing was found.
        ranks = rows[RANK.name].to_numpy()[:, None]
        return [f"r{k}" for k in ks], 100.0 * ((ranks > 0) & (ranks <= np.array(ks)))
    if AVERAGE_PRECISION.name in rows.column_names:
        return [f"map{JOINT_K}"], 100.0 * rows[AVERAGE_PRECISION.name].to_numpy()[:, None]
    return ["accuracy"], 100.0 * rows[CORRECT.name].to_numpy(zero_copy_only=False)[:, None].astype(float)


def by_direction(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each direction."""
    for direction in DIRECTIONS:
        yield direction, rows.filter(pc.equal(rows["direction"], direction))


def summarise(rows: pa.Table, ks: Sequence[int], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Every metric in both directions: mean and 95 % interval in percent, and the number of queries."""
    summary = {}
    for direction, own in by_direction(rows):
        names, values = metric_values(own, ks)
        found = statistics.intervals(values, own["id"].to_numpy(), resamples, seed)
        for name, interval in zip(names, found, strict=True):
            # Four decimals: in a set of ten thousand, one query changes a metric by 0.01.
            rounded = {key: round(value, 4) for key, value in asdict(interval).items()}
            summary[f"{direction}_{name}"] = rounded | {"queries": len(own)}
    return summary


def breakdowns(
    rows: pa.Table, ks: Sequence[int], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The summary of each group of queries: by tokens, by sentences, by twins' attribute and by part."""
    groups = {
        "tokens": [_bin(count, TOKEN_BINS) for count in rows["tokens"].to_pylist()],
        "sentences": [_bin(count, SENTENCE_BINS) for count in rows["sentences"].to_pylist()],
        "attribute": rows["attribute"].to_pylist(),
        "part": rows["part"].to_pylist(),
    }
    return {
        name: {
            key: summarise(rows.filter(pa.array([one == key for one in keys])), ks, resamples, seed)
            for key in sorted(set(keys), key=_order)
        }
        for name, keys in groups.items()
        if any(keys)
    }


def _bin(count: int, ends: Sequence[int]) -> str:
    place = bisect_left(ends, count)
    if 0 < place < len(ends):
        return f"{ends[place - 1] + 1}-{ends[place]}"
    return f"> {ends[-1]}" if place else f"<= {ends[0]}"


def _order(key: str) -> tuple[bool, list[int], str]:
    """Sort key: bins by their numbers, the open one last; names by the alphabet."""
    return key.startswith(">"), [int(part) for part in key.strip("<=> ").split("-") if part.isdigit()], key
