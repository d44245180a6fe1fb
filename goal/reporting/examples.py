"""What the page shows of single pictures: mined pairs, queries won and lost, sentences on patches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from goal import weights
from goal.boxes import View
from goal.config import paths
from goal.datasets import manifest
from goal.datasets.images import open_image
from goal.datasets.manifest import Row
from goal.evaluation import compare, grounding
from goal.evaluation.grounding import Grounding
from goal.mining.mined import SIDES
from goal.reporting import pictures

Item = TypeVar("Item")


@dataclass(frozen=True)
class PairedComparison:
    """Captions for which only one of two models ranks the right picture first, largest difference first."""

    ours: str
    theirs: str
    won: list[dict[str, Any]]
    lost: list[dict[str, Any]]
    won_count: int
    lost_count: int


def pairs(data_set: str, split: str, count: int, max_megapixels: float) -> list[dict[str, Any]]:
    """Up to `count` pictures with usable pairs, spread over the split: boxes and sentences in one colour."""
    shards = sorted(paths.pairs_dir(split).glob("shard-*.parquet"))
    if not shards or count == 0:
        return []
    usable = [
        pq.read_table(path, columns=["id", "dropped"]).filter(pc.field("dropped") == "") for path in shards
    ]
    names = spread(sorted(set(pa.concat_tables(usable)["id"].to_pylist())), count)
    chosen = [
        pq.read_table(path, partitioning=None, filters=pc.field("id").isin(names)).to_pylist()
        for path in shards
    ]
    sentences: dict[str, list[dict]] = {name: [] for name in names}
    for one in (one for shard in chosen for one in shard):
        sentences[one["id"]].append(one)
    rows = {row.id: row for row in manifest.read(paths.manifest(data_set, split))}
    return [_card(rows[name], sentences[name], max_megapixels) for name in names]


def queries(data_set: str, ours: str, theirs: str, count: int, max_megapixels: float) -> PairedComparison:
    """Compare two models by the rank of the right picture for each test caption; up to `count` examples."""
    both = [
        compare.read(model, "test").filter(pc.field("direction") == "text_to_image")
        for model in (ours, theirs)
    ]
    ranks = [
        {"id": name, "caption": caption, "ours": one, "theirs": two}
        for name, caption, one, two in zip(
            *(both[0][column].to_pylist() for column in ("id", "caption", "rank")),
            both[1]["rank"].to_pylist(),
            strict=True,
        )
    ]
    won = [one for one in ranks if one["ours"] == 1 < one["theirs"]]
    lost = [one for one in ranks if one["theirs"] == 1 < one["ours"]]
    won.sort(key=lambda one: (-one["theirs"], one["id"], one["caption"]))
    lost.sort(key=lambda one: (-one["ours"], one["id"], one["caption"]))
    rows = {row.id: row for row in manifest.read(paths.manifest(data_set, "test"))}

    def shown(found: Sequence[dict]) -> list[dict[str, Any]]:
        return [_query(one, rows[one["id"]], max_megapixels) for one in found[:count]]

    return PairedComparison(ours, theirs, shown(won), shown(lost), len(won), len(lost))


def grounded(
    data_set: str, before: str, after: str, count: int, max_megapixels: float
) -> Iterator[dict[str, Any]]:
    """Up to `count` test pictures with the heat maps of their first caption's sentences by two models."""
    rows = spread(manifest.read(paths.manifest(data_set, "test")), count)
    if not rows:
        return
    models = [weights.load(paths.model_dir(name)).eval() for name in (before, after)]
    truth = _truth(data_set)
    for row in rows:
        image = open_image(row.image, max_megapixels)
        found = [grounding.ground(model, image, row.captions[0]) for model in models]
        view = View(image.size, models[0].spec.image_size, models[0].spec.view)
        yield {
            "id": row.id,
            "view": pictures.viewed(image, models[0].spec.view),
            "size": view.view_size,
            "tokens": found[0].tokens,
            "read": found[0].read,
            "attention": [pictures.heat(one.attention) for one in found],
            "sentences": [
                _sentence(found, place, truth.get((row.id, sentence.start, sentence.end)), view)
                for place, sentence in enumerate(found[0].sentences)
            ],
        }


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Up to `count` items at even distances."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def _card(row: Row, sentences: list[dict], max_megapixels: float) -> dict[str, Any]:
    sentences = sorted(sentences, key=lambda one: (one["caption"], one["sentence"]))
    usable = [one for one in sentences if not one["dropped"]]
    # A colour a box: sentences that share one would hide each other's.
    boxes = list(dict.fromkeys(_sides(one) for one in usable))
    colours = {box: pictures.colour(place) for place, box in enumerate(boxes)}
    return {
        "id": row.id,
        "image": pictures.small_file(row.image, max_megapixels),
        "width": row.width,
        "height": row.height,
        "boxes": [_box(box) | {"colour": colours[box]} for box in boxes],
        "sentences": [
            {
                "text": row.captions[one["caption"]][one["start"] : one["end"]],
                "colour": None if one["dropped"] else colours[_sides(one)],
                "note": one["dropped"] or f"{one['similarity']:.2f} {one['source']}",
            }
            for one in sentences
        ],
    }


def _sides(one: dict) -> tuple[float, ...]:
    return tuple(one[side] for side in SIDES)


def _query(query: dict, row: Row, max_megapixels: float) -> dict[str, Any]:
    return query | {
        "image": pictures.small_file(row.image, max_megapixels),
        "text": row.captions[query["caption"]],
    }


def _sentence(
    found: list[Grounding], place: int, truth: tuple[float, ...] | None, view: View
) -> dict[str, Any]:
    maps = [one.maps[place] for one in found]
    read = not torch.isnan(maps[0]).any()
    return {
        "text": found[0].sentences[place].text,
        "maps": [pictures.heat(one) for one in maps] if read else [],
        "scores": [f"{float(one.scores[place]):.2f}" for one in found],
        "box": _box(view.box_to_view(truth)) if truth else None,
    }


def _truth(data_set: str) -> dict[tuple[str, int, int], tuple[float, ...]]:
    """True boxes (image frame) of the sentences of first captions, where the set knows them."""
    path = paths.data_dir(data_set) / "truth.parquet"
    lines = manifest.read_table(path, manifest.TRUTH).to_pylist() if path.exists() else []
    return {(one["id"], one["start"], one["end"]): _sides(one) for one in lines if one["caption"] == 0}


def _box(sides: Sequence[float]) -> dict[str, float]:
    x1, y1, x2, y2 = (round(side, 2) for side in sides)
    return {"x": x1, "y": y1, "width": round(x2 - x1, 2), "height": round(y2 - y1, 2)}
