"""Boxes that come with the pictures, in the forms that people write them: a column `regions` or `objects`.

regions: a list of objects, each with a box and perhaps a phrase; objects: an object of lists, as imagefolders
of Hugging Face have it. A box is bbox or bbox_xywh (x, y, width, height, as COCO's), or box or bbox_xyxy (x1,
y1, x2, y2), in pixels of the image frame.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from goal.config import paths
from goal.datasets import columns
from goal.datasets.manifest import BOXES
from goal.errors import UserError

SIZED, CORNERS = ("bbox_xywh", "bbox"), ("bbox_xyxy", "box")
PHRASES = ("phrase", "caption", "label", "text", "category", "categories")
SIDES = ("x1", "y1", "x2", "y2")


class Given(NamedTuple):
    """A box (x1, y1, x2, y2; image frame, pixels) and what it shows; "": not said."""

    box: tuple[float, float, float, float]
    phrase: str


def parse(found: Any) -> list[Given]:
    """The boxes of a row's column; raises ValueError for what is none of these forms."""
    if isinstance(found, str):
        found = json.loads(found)  # a cell of a table; what it raises is a ValueError
    if isinstance(found, dict):
        length = max((len(one) for one in found.values() if isinstance(one, list)), default=0)
        named = {name: one for name, one in found.items() if isinstance(one, list) and len(one) == length}
        found = [dict(zip(named, values, strict=True)) for values in zip(*named.values(), strict=True)]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"found {found!r}"[:80])
    return [_given(one) for one in found]


def inside(given: Given, width: int, height: int) -> dict[str, Any] | None:
    """A row of BOXES without id: the box cut to the picture; None where nothing of it is left."""
    x1, y1, x2, y2 = given.box
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return None
    return dict(zip(SIDES, cut, strict=True)) | {"phrase": given.phrase}


def file_of(data_set: str) -> Path:
    """The table of a set's boxes; raises UserError where it has none."""
    path = paths.manifest(data_set, "boxes")
    if not path.exists():
        raise UserError(
            f"{path}: not found: regions.sources names given, and no row of data.path has boxes (a column "
            f"{' or '.join(columns.BOXES)}, or COCO's bbox)"
        )
    return path


def read(path: Path, ids: list[str]) -> dict[str, list[Given]]:
    """The boxes of these pictures by id, of each in the order of their rows."""
    table = pq.read_table(path, schema=BOXES, filters=pc.field("id").isin(ids))
    found: dict[str, list[Given]] = {}
    for row in table.to_pylist():
        found.setdefault(row["id"], []).append(Given(tuple(row[side] for side in SIDES), row["phrase"]))
    return found


def _given(one: dict[str, Any]) -> Given:
    form = next((name for name in (*SIZED, *CORNERS) if one.get(name) is not None), "")
    box = one.get(form)
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if not numbers or not all(map(math.isfinite, box)):
        raise ValueError(f"a box is {box!r}"[:80])
    x, y, right, below = map(float, box)
    corners = (x, y, x + right, y + below) if form in SIZED else (x, y, right, below)
    phrase = next((one[name] for name in PHRASES if isinstance(one.get(name), str)), "")
    return Given(corners, " ".join(phrase.split()))
