"""What the page shows of single pictures: mined pairs, queries won and lost, sentences on patches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import torch

from goal import weights
from goal.boxes import View
from goal.config import paths
from goal.datasets import manifest, slices
from goal.datasets.images import open_image
from goal.datasets.manifest import Row
from goal.evaluation import compare, grounding
from goal.evaluation.grounding import Grounding
from goal.reporting import cards, pictures


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
    """Up to `count` pictures with usable pairs, spread over the split: boxes drawn, and their sentences."""
    shards = sorted(paths.pairs_dir(split).glob("shard-*.parquet"))
    found = cards.drawn(shards, paths.manifest(data_set, split), count, max_megapixels)
    return [
        {"id": card.id, "image": pictures.small(card.picture), "sentences": card.sentences} for card in found
    ]


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
    shown_ids = {one["id"] for one in [*won[:count], *lost[:count]]}
    rows = {row.id: row for row in slices.named(paths.manifest(data_set, "test"), shown_ids)}

    def shown(found: Sequence[dict]) -> list[dict[str, Any]]:
        return [_query(one, rows[one["id"]], max_megapixels) for one in found[:count]]

    return PairedComparison(ours, theirs, shown(won), shown(lost), len(won), len(lost))


def grounded(
    data_set: str, before: str, after: str, count: int, max_megapixels: float
) -> Iterator[dict[str, Any]]:
    """Up to `count` test pictures with the heat maps of their first caption's sentences by two models."""
    test = paths.manifest(data_set, "test")
    places = cards.spread(range(slices.count(test)), count)
    rows = [row for place in places for row in slices.rows(test, place, place + 1)]
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
    return {(one["id"], one["start"], one["end"]): cards.sides(one) for one in lines if one["caption"] == 0}


def _box(sides: Sequence[float]) -> dict[str, float]:
    x1, y1, x2, y2 = (round(side, 2) for side in sides)
    return {"x": x1, "y": y1, "width": round(x2 - x1, 2), "height": round(y2 - y1, 2)}
