"""What mining came to, counted over the shards of pairs; and, where the truth is known, how right it is."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from goal import boxes
from goal.config import paths
from goal.datasets import manifest
from goal.mining import shards
from goal.mining.mined import SIDES

# Cosines of the histogram's edges.
EDGES = np.round(np.arange(-1, 1.01, 0.05), 2)
# A sentence counts as matched when its box overlaps the true one so much.
RIGHT = 0.5


def of(files: Sequence[Path], data_set: str) -> dict[str, Any]:
    """Counts over all shards, read one at a time, and LISM's score where data/<set>/truth.parquet exists."""
    totals, unreadable, dropped, winners = Counter(), Counter(), Counter(), Counter()
    histogram, cosines = np.zeros(len(EDGES) - 1, dtype=int), 0.0
    truth = _Truth(data_set)
    for path in files:
        notes = shards.read_notes(path)
        unreadable.update(notes.pop("unreadable"))
        totals.update(notes)
        table = pq.read_table(path)
        usable = table.filter(pa.compute.equal(table["dropped"], ""))
        similarity = usable["similarity"].to_numpy()
        histogram += np.histogram(similarity.clip(-1, 1), EDGES)[0]
        cosines += similarity.sum(dtype=np.float64)
        totals.update(
            sentences=len(table),
            truncated=sum(table["truncated"].to_pylist()),
            pairs=len(usable),
            pictures_with_pair=len(usable["id"].unique()),
        )
        dropped.update(reason for reason in table["dropped"].to_pylist() if reason)
        winners.update(usable["source"].to_pylist())
        truth.compare(table)
    summary = {
        **totals,
        "unreadable": dict(sorted(unreadable.items())),
        "dropped": dict(sorted(dropped.items())),
        "winners": dict(sorted(winners.items())),
        "similarity": {
            "mean": round(cosines / max(totals["pairs"], 1), 6),
            "edges": EDGES.tolist(),
            "counts": histogram.tolist(),
        },
    }
    return summary | ({"truth": truth.score()} if truth.known else {})


def line(summary: dict[str, Any]) -> str:
    """The summary in a line for the terminal."""
    parts = [
        f"{summary['pairs']} pairs of {summary['sentences']} sentences in {summary['pictures']} pictures"
    ]
    parts += [f"{count} x {reason}" for reason, count in summary["dropped"].items()]
    parts += [
        f"{summary[key]} {key.replace('_', ' ')}"
        for key in ("captions_without_sentence", "truncated")
        if summary[key]
    ]
    if "truth" in summary:
        parts.append(f"{summary['truth']['matched_share']:.1%} of the described things found")
    return "; ".join(parts)


class _Truth:
    """The true box of every sentence that describes one thing, and how near mining came to it."""

    def __init__(self, data_set: str) -> None:
        path = paths.data_dir(data_set) / "truth.parquet"
        lines = manifest.read_table(path, manifest.TRUTH).to_pylist() if path.exists() else []
        self.known: dict[str, dict[tuple[int, int, int], tuple[float, ...]]] = {}
        for one in lines:
            place = one["caption"], one["start"], one["end"]
            self.known.setdefault(one["id"], {})[place] = tuple(one[side] for side in SIDES)
        self.overlaps: list[float] = []

    def compare(self, table: pa.Table) -> None:
        """Take one shard's sentences; a true sentence that was split otherwise overlaps by 0."""
        if not self.known:
            return
        found = {
            (one["id"], (one["caption"], one["start"], one["end"])): tuple(one[side] for side in SIDES)
            for one in table.to_pylist()
        }
        for name in dict.fromkeys(name for name, _ in found):
            for place, box in self.known.get(name, {}).items():
                mined = found.get((name, place))
                self.overlaps.append(_overlap(mined, box) if mined else 0.0)

    def score(self) -> dict[str, float]:
        matched = sum(overlap >= RIGHT for overlap in self.overlaps)
        count = max(len(self.overlaps), 1)
        return {
            "sentences": len(self.overlaps),
            "matched": matched,
            "matched_share": round(matched / count, 6),
            "mean_iou": round(sum(self.overlaps) / count, 6),
        }


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return boxes.iou(torch.tensor([a]), torch.tensor([b])).item()
