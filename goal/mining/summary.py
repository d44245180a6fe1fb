"""Counts over the shards of pairs and, where the true boxes are known, how many sentences mining matched."""

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
    return summary | ({"truth": truth.score()} if truth.boxes else {})


def line(summary: dict[str, Any]) -> str:
    """The summary as one line for the terminal."""
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
        self.boxes = {_place(line): _box(line) for line in lines}
        self.per_picture = Counter(line["id"] for line in lines)
        self.overlaps: list[float] = []
        self.sentences = 0

    def compare(self, table: pa.Table) -> None:
        """Add one shard's sentences; a true sentence that was split otherwise counts as an overlap of 0."""
        self.sentences += sum(self.per_picture[name] for name in table["id"].unique().to_pylist())
        for line in table.to_pylist() if self.boxes else ():
            true = self.boxes.get(_place(line))
            if true is not None:
                self.overlaps.append(boxes.iou(_box(line), true).item())

    def score(self) -> dict[str, float]:
        matched, count = sum(overlap >= RIGHT for overlap in self.overlaps), max(self.sentences, 1)
        return {
            "sentences": self.sentences,
            "matched": matched,
            "matched_share": round(matched / count, 6),
            "mean_iou": round(sum(self.overlaps) / count, 6),
        }


def _place(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["id"], line["caption"], line["start"], line["end"]


def _box(line: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([[line[side] for side in SIDES]])
