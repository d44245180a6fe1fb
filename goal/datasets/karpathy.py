"""COCO 5k and Flickr30k 1k: test pictures with five short captions each, to see what was forgotten.

COCO is arXiv 1405.0312, Flickr30k Young et al. (2014); the splits are Karpathy and Fei-Fei (2015).
Layout: caption_datasets.zip with dataset_<name>.json: {"images": [{"filename", "filepath" (COCO: the folder),
"split" (train, restval, val, test), "sentences": [{"raw", ...}, ...], ...}, ...]}; val2014.zip with
val2014/COCO_val2014_<id>.jpg; flickr30k-images.tar.gz with flickr30k-images/<id>.jpg.
"""

from pathlib import Path
from typing import Any

from goal.datasets import released
from goal.datasets.captions_file import Line
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

CAPTIONS = Remote(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    size=36_745_453,
    sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
)
COCO_IMAGES = Remote("http://images.cocodataset.org/zips/val2014.zip", size=6_645_013_297)
FLICKR_IMAGES = "flickr30k-images"
# Some COCO pictures have six or seven: everyone takes the first five.
FIRST = 5


def coco(root: Path, gallery: int) -> tuple[list[Line], Path]:
    """COCO's test rows, and the folder to which their pictures are relative; fetched and unpacked."""
    lines = _test_lines(root, "coco", gallery)
    if released.first_folder(root, "val2014"):
        return lines, root
    return lines, unpack(*fetch([COCO_IMAGES], root, "COCO's pictures"), root / "pictures")


def flickr30k(root: Path, gallery: int) -> tuple[list[Line], Path]:
    """Flickr30k's test rows, and the folder of their pictures, which a user has put there."""
    places = (FLICKR_IMAGES, f"pictures/{FLICKR_IMAGES}")
    pictures = released.by_hand("flickr30k", root, *places, archive=f"{FLICKR_IMAGES}.tar.gz")
    return _test_lines(root, "flickr30k", gallery), pictures


def _test_lines(root: Path, name: str, count: int) -> list[Line]:
    file = f"dataset_{name}.json"
    path = root / file
    if not path.exists():
        path = unpack(*fetch([CAPTIONS], root, "the Karpathy splits"), root / "caption_datasets") / file
    content = released.read_json(path)
    try:
        test = [image for image in content["images"] if image["split"] == "test"]
        lines = [_line(f"{file}: test picture {number}", image) for number, image in enumerate(test)]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of the Karpathy splits ({error!r})") from error
    released.expect(path, "test pictures", len(lines), count)
    return lines


def _line(row: str, image: dict[str, Any]) -> Line:
    captions = [sentence["raw"] for sentence in image["sentences"][:FIRST]]
    path = Path(image.get("filepath", ""), image["filename"])
    return released.line(row, path.stem, path.as_posix(), captions, "test")
