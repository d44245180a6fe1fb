"""DOCCI: 15k photographs with long human descriptions (Onoe et al., 2024, arXiv 2404.19753).

Layout: docci_descriptions.jsonlines, a JSON object a line with example_id, split (train, test, qual_dev,
qual_test), image_file and description; docci_images.tar.gz with images/<image_file>.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.datasets import Collected, released
from goal.datasets.captions_file import Line
from goal.datasets.download import Remote, fetch
from goal.datasets.released import Release
from goal.datasets.unpack import unpack
from goal.errors import UserError

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
COUNTS = {"train": 9647, "test": 5000, "qual_dev": 100, "qual_test": 100}
# The paper's own test, and that of GOAL's list, which has the pictures for qualitative tests in it.
GALLERIES = (5000, 5100)


def collect(params: "Params", target: Path) -> Collected:
    """Fetch, unpack and describe DOCCI; nothing is written to `target`."""
    del target
    root = released.root(params, RELEASE)
    splits = {"train": "train", "qual_dev": "val", "test": "test"}
    if released.usual_gallery(params, RELEASE, GALLERIES) == GALLERIES[1]:
        splits["qual_test"] = "test"
    (descriptions,) = fetch([DESCRIPTIONS], root, "DOCCI's descriptions")
    rows = list(_rows(descriptions))
    found = Counter(values.get("split") for _, values in rows)
    for split, count in COUNTS.items():
        released.expect(descriptions, f"rows of {split}", found[split], count)
    pictures = released.first_folder(root / "images", root / "docci_images" / "images")
    if pictures is None:
        (archive,) = fetch([IMAGES], root, "DOCCI's pictures")
        pictures = unpack(archive, root / "docci_images") / "images"
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
            yield row, values


def _lines(rows: list[tuple[str, dict[str, Any]]], splits: dict[str, str]) -> Iterator[Line]:
    for row, values in rows:
        if values["split"] in splits:
            name, image = values.get("example_id"), values.get("image_file")
            captions = [values.get("description")]
            yield released.line(row, name, image, captions, splits[values["split"]])
