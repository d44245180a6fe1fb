"""Flickr30k 1k: the Karpathy test pictures of Flickr30k with short captions (Young et al., 2014).

Layout: flickr30k-images.tar.gz with flickr30k-images/<id>.jpg; the captions as goal.datasets.karpathy says.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from goal.datasets import karpathy, released
from goal.datasets.manifest import Collected
from goal.datasets.released import Release
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import fetch

if TYPE_CHECKING:
    from goal.config import Params

IMAGES = "flickr30k-images"
RELEASE = Release(
    name="flickr30k",
    page="https://shannon.cs.illinois.edu/DenotationGraph",
    licence="research and education only, not commercial; the pictures are under the terms of Flickr",
    by_hand=f"fill in the form on that page; put what it gives you into data.download.root as"
    f" {IMAGES}.tar.gz, or unpacked as {IMAGES}/",
)
COUNT = 1000


def collect(params: "Params", target: Path) -> Collected:
    """Describe Flickr30k's test pictures, which a user has put there; nothing is written to `target`."""
    del target
    root = released.root(params, RELEASE)
    released.gallery(params, RELEASE, (COUNT,))
    pictures = released.first_folder(root / IMAGES)
    archive = root / f"{IMAGES}.tar.gz"
    if pictures is None and archive.exists():
        pictures = unpack(archive, root / "pictures") / IMAGES
    if pictures is None:
        raise UserError(f"{root}: no pictures of Flickr30k: {RELEASE.by_hand}")
    fetch(karpathy.needed(root, "flickr30k"), root, "the Karpathy splits")
    return released.collect(params, RELEASE, karpathy.test_lines(root, "flickr30k", COUNT), pictures)
