"""ShareGPT4V-1k: the 1,000 pictures that Long-CLIP tests with (arXiv 2311.12793, 2403.15378).

Layout: share-captioner_coco_lcs_sam_1246k_1107.json, a list whose first 1,000 rows are the test: {"image":
"sam/images/sa_<n>.jpg", "conversations": [question, {"value": caption}], ...}; the pictures, of SA-1B, below
sam/images.
"""

from itertools import islice
from pathlib import Path
from typing import Any

from goal.datasets import released
from goal.datasets.captions_file import Line, json_list
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

# Neither its size nor a checksum is known here: what is checked is that the rows in use are there.
CAPTIONS = Remote(
    "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V/resolve/main/"
    "share-captioner_coco_lcs_sam_1246k_1107.json"
)


def read(root: Path, gallery: int) -> tuple[list[Line], Path]:
    """The test rows, and the folder to which their pictures, which a user has put there, are relative."""
    released.by_hand("sharegpt4v", root, "sam/images")
    (path,) = fetch([CAPTIONS], root, "ShareGPT4V's captions (1.5 GB)")
    try:
        rows = list(islice(json_list(path), gallery))
    except UserError as error:
        raise UserError(f"{error}, or it is cut off; delete it to have it fetched again") from error
    released.expect(path, "rows", len(rows), gallery)
    return [_line(f"{path.name}[{number}]", row) for number, row in enumerate(rows)], root


def _line(place: str, row: Any) -> Line:
    try:
        # The test's captions are one line, as Long-CLIP has them.
        caption, image = row["conversations"][1]["value"].replace("\n", " "), row["image"]
        return released.line(place, Path(image).stem, image, [caption], "test")
    except (LookupError, TypeError, AttributeError):
        return Line(place, {}, "expected image and conversations with a question and a caption")
