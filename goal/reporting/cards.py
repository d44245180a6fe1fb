"""Pictures with what mining made of their sentences, drawn for the contact sheet and for the report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from goal.datasets import slices
from goal.datasets.images import open_image
from goal.datasets.manifest import Row
from goal.mining.mined import SIDES
from goal.reporting import pictures

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sentence:
    """A sentence; `number` is that of its box in the picture, 0 where the pair is not used."""

    text: str
    number: int
    note: str  # its cosine and the box's source, or why it is not used

    @property
    def colour(self) -> str:
        """That of the box."""
        return pictures.colour(self.number)


@dataclass(frozen=True)
class Card:
    """One picture with its boxes drawn and numbered, and its sentences in the order of the captions."""

    id: str
    picture: Image.Image
    sentences: list[Sentence]


def drawn(shards: Sequence[Path], manifest: Path, count: int, max_megapixels: float) -> Iterator[Card]:
    """Up to `count` pictures that have pairs, spread evenly over the shards of pairs, in their order.

    One at a time: a card is small, its picture may take hundreds of megabytes.
    """
    if not count:
        return
    usable = pa.chunked_array([_usable(path) for path in shards], pa.string())
    rows = {row.id: row for row in slices.named(manifest, spread(usable, count))}
    wanted = pc.is_in(pc.field("id"), pa.array(rows, pa.string()))
    for path in shards:
        chosen = pq.read_table(path, partitioning=None, filters=wanted)
        for name, sentences in groupby(chosen.to_pylist(), key=itemgetter("id")):
            yield _card(rows[name], list(sentences), max_megapixels)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Up to `count` items at even distances."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def sides(one: dict) -> tuple[float, ...]:
    """The box of a row of a table (image frame)."""
    return tuple(one[side] for side in SIDES)


def _usable(path: Path) -> pa.Array:
    """The ids of a shard's pictures with pairs."""
    pairs = pq.read_table(path, columns=["id", "dropped"], partitioning=None)
    return pairs.filter(pc.field("dropped") == "")["id"].unique()


def _card(row: Row, found: list[dict], max_megapixels: float) -> Card:
    # One number per box: sentences that share one would hide each other's.
    boxes = list(dict.fromkeys(sides(one) for one in found if not one["dropped"]))
    return Card(
        row.id,
        pictures.marked(open_image(row.image, max_megapixels), boxes),
        [
            Sentence(
                row.captions[one["caption"]][one["start"] : one["end"]],
                0 if one["dropped"] else boxes.index(sides(one)) + 1,
                one["dropped"] or f"{one['similarity']:.2f} {one['source']}",
            )
            for one in found
        ],
    )
