"""DCI: 7,805 SA-1B pictures with dense human captions (Urbanek et al., 2023, arXiv 2312.08578).

Layout: dci.tar.gz with densely_captioned_images/annotations/*.json (older: complete/), one a picture:
{"image", "short_caption", "extra_caption", ...}; the pictures in densely_captioned_images/photos. A caption
is the short one and the extra one, as in GOAL.

The galleries in the literature, of which every table must name its own:
| pictures | test | train | needs in data.download.root |
|---|---|---|---|
| 1999 | GOAL's DCI_test.json | GOAL's training list, or all others | DCI_test.json |
| 7444 | both lists of GOAL | nothing | DCI_test.json and the training list |
| 7602 | the names in gallery-7602.txt | all others | that file, a picture's name a line |
| 7805 | all | nothing | nothing |
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal.datasets import goal_lists, released
from goal.datasets.captions_file import Line
from goal.datasets.manifest import Collected
from goal.datasets.released import Release
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

if TYPE_CHECKING:
    from goal.config import Params

RELEASE = Release(
    name="dci",
    page="https://github.com/facebookresearch/DCI",
    licence="CC BY-NC 4.0, not commercial; pictures under the SA-1B research licence",
    by_hand="accept the SA-1B licence at https://ai.meta.com/datasets/segment-anything-downloads, download"
    " sa_000138.tar (11 GB) there, put it, or its .jpg files in a folder photos/, into data.download.root;"
    f" beside it, for the usual gallery of 1999 pictures, DCI_test.json of {goal_lists.FOLDER}",
)
ARCHIVE = Remote(
    "https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz",
    sha256="d865c244150168d3f25daaad0bf5b70b2123cf3e83ca7b0e207d5b26943c5fc7",
)
COUNT = 7805
GALLERIES = (1999, 7444, 7602, 7805)
ARCHIVED = "sa_000138"
TEST_LIST = "DCI_test.json"
TRAIN_LIST = goal_lists.CROPS_TO_TRAIN
OTHER_LIST = "gallery-7602.txt"
# The files that name the pictures of each gallery, in the same order.
LISTS = ([TEST_LIST], [TEST_LIST, TRAIN_LIST], [OTHER_LIST], [])


def collect(params: "Params", target: Path) -> Collected:
    """Fetch DCI's captions, describe its pictures, which a user has put there; nothing goes to `target`."""
    del target
    root = released.root(params, RELEASE)
    gallery = released.gallery(params, RELEASE, GALLERIES)
    lists = LISTS[GALLERIES.index(gallery)]
    split_of = _splits(root, lists)
    pictures = _pictures(root)
    folder = root / "densely_captioned_images"
    annotations = released.first_folder(folder / "annotations", folder / "complete")
    if annotations is None:
        (archive,) = fetch([ARCHIVE], root, "DCI's captions")
        folder = unpack(archive, root / "captions") / folder.name
        annotations = released.first_folder(folder / "annotations", folder / "complete") or folder
    files = sorted(annotations.glob("*.json"))
    released.expect(annotations, "annotated pictures", len(files), COUNT)
    lines = [line for file in tqdm(files, "DCI's captions", unit=" files") if (line := _line(file, split_of))]
    test = sum(line.values.get(released.SPLIT) == "test" for line in lines)
    if test != gallery:
        raise UserError(
            f"{root}: {' and '.join(lists)}: {test:,} of the pictures named there are annotated, expected"
            f" {gallery:,}: another list, or cut off"
        )
    return released.collect(params, RELEASE, lines, pictures)


def _pictures(root: Path) -> Path:
    photos = released.first_folder(
        root / "photos", root / "densely_captioned_images" / "photos", root / ARCHIVED
    )
    if photos is None and (archive := root / f"{ARCHIVED}.tar").exists():
        photos = unpack(archive, root / ARCHIVED)
    if photos is None:
        raise UserError(f"{root}: no pictures of DCI: {RELEASE.by_hand}")
    return photos


def _splits(root: Path, lists: list[str]) -> Callable[[str], str]:
    """What tells a picture's split by its file name; "": it is in none."""
    if not lists:
        return lambda name: "test"
    if lists == [OTHER_LIST]:
        names = set(_needed(root / OTHER_LIST, "bring your own").read_text(encoding="utf-8").split())
        return lambda name: "test" if name in names else "train"
    test = {entry.name for entry in goal_lists.read(_needed(root / TEST_LIST, goal_lists.FOLDER))}
    if lists == [TEST_LIST] and not (root / TRAIN_LIST).exists():
        return lambda name: "test" if name in test else "train"
    crops = goal_lists.read(_needed(root / TRAIN_LIST, goal_lists.FOLDER))
    train = {f"{crop.crop_of}.jpg" for crop in crops}
    if TRAIN_LIST in lists:
        return lambda name: "test" if name in test | train else ""
    # GOAL uses 361 pictures for nothing: they can watch over the training.
    return lambda name: "test" if name in test else "train" if name in train else "val"


def _needed(path: Path, origin: str) -> Path:
    if not path.exists():
        raise UserError(
            f"{path}: not found; it names this gallery's pictures: {origin} (docs/data.md, Galleries)"
        )
    return path


def _line(file: Path, split_of: Callable[[str], str]) -> Line | None:
    """The row of a picture's annotation; none where the gallery leaves the picture out."""
    values = released.read_json(file)
    try:
        name = values["image"]
        caption = f"{values['short_caption'].strip()} {values['extra_caption'].strip()}".strip()
        split = split_of(name)
        return released.line(file.name, Path(name).stem, name, [caption], split) if split else None
    except (LookupError, TypeError, AttributeError):
        return Line(file.name, {}, "expected image, short_caption and extra_caption")
