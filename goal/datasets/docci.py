"""DOCCI: 15k photographs with long human descriptions (Onoe et al., 2024, arXiv 2404.19753).

Layout: docci_descriptions.jsonlines, a JSON object per line with example_id, split (train, test, qual_dev,
qual_test), image_file and description; docci_images.tar.gz with images/<image_file>.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from goal.datasets import captions_file, released
from goal.datasets.captions_file import Line
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

_HOME = "https://storage.googleapis.com/docci/data"
DESCRIPTIONS = Remote(f"{_HOME}/docci_descriptions.jsonlines", size=11_000_214)
IMAGES = Remote(f"{_HOME}/docci_images.tar.gz", size=7_592_938_768)
UNPACKED = "docci_images"
COUNTS = {"train": 9647, "test": 5000, "qual_dev": 100, "qual_test": 100}
# The gallery of GOAL's list, which has the pictures for qualitative tests in it.
WITH_QUAL_TEST = 5100


def read(root: Path, gallery: int) -> tuple[Iterator[Line], Path]:
    """The rows, and the folder of their pictures; fetched and unpacked."""
    (descriptions,) = fetch([DESCRIPTIONS], root, "DOCCI's descriptions")
    rows = list(captions_file.read_jsonl(descriptions))
    for row in rows:
        if not isinstance(row.values.get("split"), str):
            fault = row.fault or "no split"
            raise UserError(f"{root / row.row}: {fault}; delete the file to have it fetched again")
    found = Counter(row.values["split"] for row in rows)
    for split, count in COUNTS.items():
        released.expect(descriptions, f"rows of {split}", found[split], count)
    pictures = released.first_folder(root, "images", f"{UNPACKED}/images")
    if pictures is None:
        pictures = unpack(*fetch([IMAGES], root, "DOCCI's pictures"), root / UNPACKED) / "images"
    return _lines(rows, "test" if gallery == WITH_QUAL_TEST else ""), pictures


def _lines(rows: list[Line], qual_test: str) -> Iterator[Line]:
    """The rows in this project's splits; "": in none."""
    splits = {"train": "train", "qual_dev": "val", "test": "test", "qual_test": qual_test}
    for row in rows:
        named, split = row.values["split"], splits.get(row.values["split"])
        if split is None:
            yield Line(row.row, {}, f"unknown split {named!r}")
        elif split:
            name, image, caption = map(row.values.get, ("example_id", "image_file", "description"))
            yield released.line(row.row, name, image, [caption], split)
