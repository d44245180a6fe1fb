"""The embedded data set: drawn scenes with long captions, true boxes, twins and crops.

Besides the manifests it writes
- twins.parquet: a test picture with one attribute changed, in picture and caption;
- short.parquet: the test pictures with captions of the kind that the small CLIP was pretrained on;
- truth.parquet: the sentence of each thing and its box;
- joint.parquet (id, of, image, x1, y1, x2, y2, caption): one thing of each test picture and its sentence.

goal.datasets.manifest holds the columns. Every picture is a function of (seed, split, index) alone.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal.config import paths
from goal.datasets import manifest, scenes_layout, scenes_render, scenes_words
from goal.datasets.manifest import Collected, Row

if TYPE_CHECKING:
    from goal.config import Params

CHUNK = 50  # pictures a task of the process pool


@dataclass(frozen=True)
class Order:
    """One picture to draw; `twin`: with one attribute changed."""

    split: str
    index: int
    twin: bool

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:05d}{'-twin' if self.twin else ''}"


@dataclass(frozen=True)
class Drawn:
    """A finished picture: its row, every thing's sentence and box, and what the companion tables need."""

    order: Order
    row: Row
    spans: list[tuple[int, int]]
    boxes: list[tuple[float, float, float, float]]
    short: str
    attribute: str
    crop: int


def collect(params: "Params", folder: Path) -> Collected:
    """Draw params.data.scenes into folder/images and describe it."""
    sizes = params.data.scenes
    orders = [
        Order(split, index, False) for split in manifest.SPLITS for index in range(getattr(sizes, split))
    ] + [Order("test", index, True) for index in range(sizes.twins)]
    (folder / "images").mkdir()
    drawn = _draw_all(params, folder, orders)
    plain = [one for one in drawn if not one.order.twin]
    test = [one for one in plain if one.order.split == "test"]
    return Collected(
        splits={split: [one.row for one in plain if one.order.split == split] for split in manifest.SPLITS},
        tables={
            "twins": manifest.table([_twin(one) for one in drawn if one.order.twin], manifest.TWINS),
            "short": manifest.table(
                [replace(one.row, captions=(one.short,)) for one in test], manifest.MANIFEST
            ),
            "truth": manifest.table([line for one in plain for line in _truth(one)], manifest.TRUTH),
            "joint": manifest.table([_crop(one) for one in test], manifest.JOINT),
        },
    )


def draw(params: "Params", folder: Path, order: Order) -> Drawn:
    """Draw one picture and write it to folder/images."""
    sizes, seed = params.data.scenes, params.seed
    streams = {
        purpose: scenes_layout.stream(seed, order.split, order.index, purpose)
        for purpose in scenes_layout.PURPOSES
    }
    scene, attribute = scenes_layout.draw(streams["layout"], *sizes.objects), ""
    if order.twin:
        scene, attribute = scenes_layout.change(scene, streams["twin"])
    picture, boxes = scenes_render.render(scene, sizes.image_size)
    scenes_render.save(picture, folder / "images" / f"{order.id}.png")
    caption, spans = scenes_words.long_caption(scene, streams["words"])
    path = paths.data_dir(params.data.name) / "images" / f"{order.id}.png"
    row = Row(order.id, path.as_posix(), sizes.image_size, sizes.image_size, (caption,), "scenes")
    short = scenes_words.short_caption(scene, streams["short"])
    return Drawn(order, row, spans, boxes, short, attribute, int(streams["crop"].integers(len(boxes))))


def _draw_all(params: "Params", folder: Path, orders: list[Order]) -> list[Drawn]:
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        drawn = pool.map(partial(draw, params, folder), orders, chunksize=CHUNK)
        return list(tqdm(drawn, "scenes", total=len(orders), unit=" pictures"))


def _twin(drawn: Drawn) -> dict[str, object]:
    of = replace(drawn.order, twin=False).id
    return {**asdict(drawn.row), "twin_of": of, "attribute": drawn.attribute}


def _truth(drawn: Drawn) -> list[dict[str, object]]:
    return [
        {"id": drawn.row.id, "caption": 0, "start": start, "end": end} | _sides(box)
        for (start, end), box in zip(drawn.spans, drawn.boxes, strict=True)
    ]


def _crop(drawn: Drawn) -> dict[str, object]:
    start, end = drawn.spans[drawn.crop]
    sentence = drawn.row.captions[0][start:end]
    row = {"id": f"{drawn.row.id}#crop", "of": drawn.row.id, "image": drawn.row.image, "caption": sentence}
    return row | _sides(drawn.boxes[drawn.crop])


def _sides(box: tuple[float, float, float, float]) -> dict[str, float]:
    return dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
