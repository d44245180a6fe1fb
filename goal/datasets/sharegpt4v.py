"""ShareGPT4V-1k: the 1,000 pictures that Long-CLIP tests with (arXiv 2311.12793, 2403.15378).

Layout: share-captioner_coco_lcs_sam_1246k_1107.json, a list whose first 1,000 rows are the test: {"image":
"sam/images/sa_<n>.jpg", "conversations": [question, {"value": caption}], ...}; the pictures, of SA-1B, below
sam/images.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.datasets import released
from goal.datasets.captions_file import Line
from goal.datasets.manifest import Collected
from goal.datasets.released import Release
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

if TYPE_CHECKING:
    from goal.config import Params

RELEASE = Release(
    name="sharegpt4v",
    page="https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
    licence="captions CC BY-NC 4.0 and the terms of OpenAI; pictures under the SA-1B research licence",
    by_hand="accept the SA-1B licence at https://ai.meta.com/datasets/segment-anything-downloads and put the"
    " pictures that the list names into data.download.root as sam/images/sa_<n>.jpg (the page of ShareGPT4V"
    " links an archive of just the SA-1B pictures it uses)",
)
# Neither its size nor a checksum is known here: what is checked is that the rows in use are there.
CAPTIONS = Remote(
    "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V/resolve/main/"
    "share-captioner_coco_lcs_sam_1246k_1107.json"
)
COUNT = 1000
BLOCK = 1 << 20  # characters


def collect(params: "Params", target: Path) -> Collected:
    """Describe the test pictures, which a user has put there; nothing is written to `target`."""
    del target
    root = released.root(params, RELEASE)
    released.gallery(params, RELEASE, (COUNT,))
    if released.first_folder(root / "sam" / "images") is None:
        raise UserError(f"{root}: no sam/images: {RELEASE.by_hand}")
    (path,) = fetch([CAPTIONS], root, "ShareGPT4V's captions (1.5 GB)")
    try:
        rows = list(_first_rows(path, COUNT))
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON in UTF-8: {error}; delete it to have it fetched again") from error
    released.expect(path, "rows", len(rows), COUNT)
    return released.collect(params, RELEASE, _lines(rows, path.name), root)


def _first_rows(path: Path, count: int) -> Iterator[dict[str, Any]]:
    """The first rows of a JSON list, of which no more is read and held than they need."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(BLOCK).lstrip().removeprefix("[")
        for _ in range(count):
            while True:
                text = text.lstrip().removeprefix(",").lstrip()
                try:
                    row, end = decoder.raw_decode(text)
                    break
                except ValueError as error:
                    more = file.read(BLOCK)
                    if not more:
                        if text.startswith("]"):
                            return
                        raise UserError(f"{path}: not a JSON list of rows, or cut off: {error}") from error
                    text += more
            yield row
            text = text[end:]


def _lines(rows: list[dict[str, Any]], file: str) -> Iterator[Line]:
    for number, row in enumerate(rows):
        try:
            # The test's captions are one line, as Long-CLIP has them.
            caption, image = row["conversations"][1]["value"].replace("\n", " "), row["image"]
            yield released.line(f"{file}[{number}]", Path(image).stem, image, [caption], "test")
        except (LookupError, TypeError, AttributeError):
            yield Line(
                f"{file}[{number}]", {}, "expected image and conversations with a question and a caption"
            )
