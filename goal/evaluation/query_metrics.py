"""Metrics of a benchmark from its per-query results: means, intervals, and breakdowns by groups of queries.

Letters: Q queries, K metrics.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
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
        return [f"r{k}" for k in ks], 100.0 * (rows[RANK.name].to_numpy()[:, None] <= np.array(ks))
    if AVERAGE_PRECISION.name in rows.column_names:
        return [f"map{JOINT_K}"], 100.0 * rows[AVERAGE_PRECISION.name].to_numpy()[:, None]
    return ["accuracy"], 100.0 * rows[CORRECT.name].to_numpy(zero_copy_only=False)[:, None].astype(float)


def by_direction(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each direction."""
    for direction in DIRECTIONS:
        yield direction, rows.filter(pc.equal(rows["direction"], direction))


def shown(rows: pa.Table, ks: Sequence[int]) -> dict[str, list[int]]:
    """The ks of each direction that are below the number of ranked items.

    With a larger k every query finds its item. The smallest k stays, whatever the gallery.
    """
    sizes = {direction: len(own) for direction, own in by_direction(rows)}
    items = dict(zip(DIRECTIONS, reversed([sizes[direction] for direction in DIRECTIONS]), strict=True))
    return {way: [k for k in sorted(ks) if k < items[way] or k == min(ks)] for way in DIRECTIONS}


def chance(rows: pa.Table, ks: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """What every metric would be on average if galleries were ranked at random, in percent.

    rows: of a whole benchmark; ks: of each direction.
    """
    found = {}
    both = dict(by_direction(rows))
    for direction, other in zip(DIRECTIONS, reversed(DIRECTIONS), strict=True):
        items = len(both[other])
        if AVERAGE_PRECISION.name in rows.column_names:
            found[f"{direction}_map{JOINT_K}"] = 100.0 * _chance_precision(items)
        elif CORRECT.name in rows.column_names:
            found[f"{direction}_accuracy"] = 50.0
        else:
            # A picture finds any of its texts, a text its one picture.
            texts = pc.value_counts(both["text_to_image"]["id"]).field("counts").to_numpy()
            right = texts if direction == "image_to_text" else np.ones(1)
            found |= {f"{direction}_r{k}": 100.0 * _chance_recall(right, items, k) for k in ks[direction]}
    return found


def _chance_recall(right: np.ndarray, items: int, k: int) -> float:
    """Mean over queries, each with `right` of the items, of the probability that one is among k of them."""
    drawn = np.arange(min(k, items))
    missed = np.clip(items - drawn - right[:, None], 0, None) / (items - drawn)
    return float(1 - missed.prod(1).mean())


def _chance_precision(items: int) -> float:
    """Mean average precision at JOINT_K of two relevant items among `items` in random order."""
    places = np.arange(1, min(JOINT_K, items) + 1)
    return float(((1 + (places - 1) / (items - 1)) / places).sum() / items)


def summarise(rows: pa.Table, ks: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Every metric in both directions: mean and 95 % interval in percent, and the number of queries.

    ks: of each direction. A direction without queries is left out: a group may hold texts alone.
    """
    summary = {}
    for direction, own in by_direction(rows):
        if not len(own):
            continue
        names, values = metric_values(own, ks[direction])
        found = statistics.intervals(values, own["id"].to_numpy())
        for name, interval in zip(names, found, strict=True):
            # Four decimals: in a set of ten thousand, one query changes a metric by 0.01.
            rounded = {key: round(value, 4) for key, value in asdict(interval).items()}
            summary[f"{direction}_{name}"] = rounded | {"queries": len(own)}
    return summary


def breakdowns(
    rows: pa.Table, ks: Mapping[str, Sequence[int]]
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
            key: summarise(rows.filter(pa.array([one == key for one in keys])), ks)
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
