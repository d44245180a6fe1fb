"""The Karpathy splits of COCO and Flickr30k (Karpathy and Fei-Fei, 2015): five short captions a picture.

Layout: caption_datasets.zip with dataset_<name>.json: {"images": [{"filename", "filepath" (COCO: the folder),
"split" (train, restval, val, test), "sentences": [{"raw", ...}, ...], ...}, ...]}.
"""

from pathlib import Path
from typing import Any

from goal.datasets import released
from goal.datasets.captions_file import Line
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import Remote

ARCHIVE = Remote(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    size=36_745_453,
    sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
)
# Some COCO pictures have six or seven: everyone takes the first five.
CAPTIONS = 5


def needed(root: Path, name: str) -> list[Remote]:
    """What has to be fetched to `root` before `test_lines`."""
    return [] if (root / f"dataset_{name}.json").exists() else [ARCHIVE]


def test_lines(root: Path, name: str, count: int) -> list[Line]:
    """The `count` test rows of dataset_<name>.json, as it is in `root` or in the archive fetched there."""
    file = f"dataset_{name}.json"
    path = root / file
    if not path.exists():
        path = unpack(root / ARCHIVE.file, root / "caption_datasets") / file
    content = released.read_json(path)
    try:
        test = [image for image in content["images"] if image["split"] == "test"]
        lines = [_line(file, number, image) for number, image in enumerate(test)]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of the Karpathy splits ({error!r})") from error
    released.expect(path, "test pictures", len(lines), count)
    return lines


def _line(file: str, number: int, image: dict[str, Any]) -> Line:
    captions = [sentence["raw"] for sentence in image["sentences"][:CAPTIONS]]
    name = image["filename"]
    picture = f"{image['filepath']}/{name}" if "filepath" in image else name
    return released.line(f"{file}: test picture {number}", Path(name).stem, picture, captions, "test")
