"""DOCCI: 15k photographs with long human descriptions (Onoe et al., 2024, arXiv 2404.19753).

Layout: docci_descriptions.jsonlines, a JSON object a line with example_id, split (train, test, qual_dev,
qual_test), image_file and description; docci_images.tar.gz with images/<image_file>.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.datasets import released
from goal.datasets.captions_file import Line
from goal.datasets.manifest import Collected
from goal.datasets.released import Release
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

if TYPE_CHECKING:
    from goal.config import Params

RELEASE = Release(
    name="docci",
    page="https://google.github.io/docci",
    licence="CC BY 4.0, pictures and descriptions: name the authors (Onoe et al., 2024)",
)
_HOME = "https://storage.googleapis.com/docci/data"
DESCRIPTIONS = Remote(f"{_HOME}/docci_descriptions.jsonlines", size=11_000_214)
IMAGES = Remote(f"{_HOME}/docci_images.tar.gz", size=7_592_938_768)
UNPACKED = "docci_images"
COUNTS = {"train": 9647, "test": 5000, "qual_dev": 100, "qual_test": 100}
# The paper's own test, and that of GOAL's list, which has the pictures for qualitative tests in it.
GALLERIES = (5000, 5100)


def collect(params: "Params", target: Path) -> Collected:
    """Fetch, unpack and describe DOCCI; nothing is written to `target`."""
    del target
    root = released.root(params, RELEASE)
    splits = {"train": "train", "qual_dev": "val", "test": "test", "qual_test": ""}
    if released.gallery(params, RELEASE, GALLERIES) == GALLERIES[1]:
        splits["qual_test"] = "test"
    pictures = released.first_folder(root / "images", root / UNPACKED / "images")
    fetch([DESCRIPTIONS, *([] if pictures else [IMAGES])], root, "DOCCI")
    descriptions = root / DESCRIPTIONS.file
    rows = list(_rows(descriptions))
    found = Counter(values["split"] for _, values in rows)
    for split, count in COUNTS.items():
        released.expect(descriptions, f"rows of {split}", found[split], count)
    if pictures is None:
        pictures = unpack(root / IMAGES.file, root / UNPACKED) / "images"
    return released.collect(params, RELEASE, _lines(rows, splits), pictures)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            row = f"{path.name}:{number}"
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}:{number}: not JSON: {error}; delete the file to have it fetched again"
                ) from error
            if not isinstance(values, dict) or not isinstance(values.get("split"), str):
                raise UserError(
                    f"{path}:{number}: no object with a split; delete the file to have it fetched again"
                )
            yield row, values


def _lines(rows: list[tuple[str, dict[str, Any]]], splits: dict[str, str]) -> Iterator[Line]:
    for row, values in rows:
        if values["split"] not in splits:
            yield Line(row, {}, f"unknown split {values['split']!r}")
        elif splits[values["split"]]:
            name, image = values.get("example_id"), values.get("image_file")
            yield released.line(row, name, image, [values.get("description")], splits[values["split"]])
