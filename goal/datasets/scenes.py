"""The embedded data set: drawn scenes with long captions, true boxes, twins and crops.

Besides the manifests it writes, with the columns that goal.datasets.manifest holds,
- twins.parquet: a test picture with one attribute changed, in picture and caption;
- short.parquet, short_val.parquet: the test and validation pictures with captions of the kind that the small
  CLIP was pretrained on;
- truth.parquet: the sentence of each thing and its box;
- joint.parquet: one thing of each test picture and its sentence;
- colours.parquet: the colours of each test picture.

Every picture is a function of (seed, split, index) alone.
"""

import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal.config import paths
from goal.datasets import images, manifest, scenes_layout, scenes_render, scenes_words
from goal.datasets.manifest import Collected, Row

if TYPE_CHECKING:
    from goal.config import Params

CHUNK = 50  # pictures per task of the process pool
COMPANIONS = {
    "twins": manifest.TWINS,
    "short": manifest.MANIFEST,
    "short_val": manifest.MANIFEST,
    "truth": manifest.TRUTH,
    "joint": manifest.JOINT,
    "colours": manifest.COLOURS,
}


@dataclass(frozen=True)
class SceneKey:
    """One picture to draw; `twin`: with one attribute changed."""

    split: str
    index: int
    twin: bool

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:05d}{'-twin' if self.twin else ''}"


def collect(params: "Params", folder: Path) -> Collected:
    """Draw params.data.scenes into folder/images and describe it."""
    sizes = params.data.scenes
    keys = [
        SceneKey(split, index, False) for split in manifest.SPLITS for index in range(getattr(sizes, split))
    ] + [SceneKey("test", index, True) for index in range(sizes.twins)]
    (folder / "images").mkdir()
    found = defaultdict(list)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        drawn = pool.map(partial(draw, params, folder), keys, chunksize=CHUNK)
        for lines in tqdm(drawn, "scenes", total=len(keys), unit=" pictures"):
            for name, more in lines.items():
                found[name] += more
    tables = {name: manifest.table(found[name], schema) for name, schema in COMPANIONS.items()}
    return Collected({split: found[split] for split in manifest.SPLITS}, tables)


def draw(params: "Params", folder: Path, key: SceneKey) -> dict[str, list]:
    """Draw one picture, write it to folder/images and return its rows by table."""
    sizes, split = params.data.scenes, key.split
    streams = {
        purpose: scenes_layout.stream(params.seed, split, key.index, purpose)
        for purpose in scenes_layout.PURPOSES
    }
    scene = scenes_layout.scene_of(params.seed, split, key.index, *sizes.objects)
    if key.twin:
        scene, attribute = scenes_layout.change(scene, streams["twin"])
    picture, boxes = scenes_render.render(scene, sizes.image_size)
    file = folder / "images" / f"{key.id}.png"
    scenes_render.save(picture, file)
    caption, spans = scenes_words.long_caption(scene, streams["words"])
    path = paths.data_dir(params.data.name) / "images" / file.name
    size, digest = (sizes.image_size, sizes.image_size), images.digest_of(file, images.CONTENT)
    row = Row(key.id, path.as_posix(), *size, (caption,), "scenes", digest)
    if key.twin:
        of = replace(key, twin=False).id
        return {"twins": [vars(row) | {"twin_of": of, "attribute": attribute}]}
    places = [dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in boxes]
    truth = [
        {"id": row.id, "caption": 0, "start": start, "end": end} | place
        for (start, end), place in zip(spans, places, strict=True)
    ]
    rows = {split: [row], "truth": truth}
    if split == "test":
        chosen = int(streams["crop"].integers(len(boxes)))
        crop = {"id": f"{row.id}#crop", "of": row.id, "image": row.image} | places[chosen]
        rows["joint"] = [crop | {"caption": caption[slice(*spans[chosen])]}]
        things = [thing.colour for thing in scene.things]
        rows["colours"] = [{"id": row.id, "background": scene.background, "colours": things}]
    if split != "train":
        name = {"test": "short", "val": "short_val"}[split]
        rows[name] = [replace(row, captions=(scenes_words.short_caption(scene, streams["short"]),))]
    return rows
