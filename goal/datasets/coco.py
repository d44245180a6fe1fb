"""COCO 5k: the Karpathy test pictures with short captions, to see what was forgotten (arXiv 1405.0312).

Layout: val2014.zip with val2014/COCO_val2014_<id>.jpg; the captions as goal.datasets.karpathy says.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from goal.datasets import karpathy, released
from goal.datasets.manifest import Collected
from goal.datasets.released import Release
from goal.datasets.unpack import unpack
from goal.runtime.download import Remote, fetch

if TYPE_CHECKING:
    from goal.config import Params

RELEASE = Release(
    name="coco",
    page="https://cocodataset.org/#termsofuse",
    licence="captions CC BY 4.0; the pictures are under the terms of Flickr, each under its own licence",
)
IMAGES = Remote("http://images.cocodataset.org/zips/val2014.zip", size=6_645_013_297)
COUNT = 5000


def collect(params: "Params", target: Path) -> Collected:
    """Fetch, unpack and describe COCO's test pictures; nothing is written to `target`."""
    del target
    root = released.root(params, RELEASE)
    released.gallery(params, RELEASE, (COUNT,))
    unpacked = released.first_folder(root / "val2014") is not None
    fetch([*karpathy.needed(root, "coco"), *([] if unpacked else [IMAGES])], root, "COCO")
    lines = karpathy.test_lines(root, "coco", COUNT)
    pictures = root if unpacked else unpack(root / IMAGES.file, root / "pictures")
    return released.collect(params, RELEASE, lines, pictures)
