"""DCI: 7,805 SA-1B pictures with dense human captions (Urbanek et al., 2023, arXiv 2312.08578).

Layout: dci.tar.gz with densely_captioned_images/annotations/*.json (older: complete/), one per picture:
{"image", "short_caption", "extra_caption", ...}; the pictures in densely_captioned_images/photos. A caption
is the short one and the extra one, as in GOAL.

The galleries in the literature, of which every table must name its own:
| pictures | test | train | needs in data.download.root |
|---|---|---|---|
| 1999 | GOAL's DCI_test.json | GOAL's training list, or all others | DCI_test.json |
| 7444 | both lists of GOAL | nothing | DCI_test.json and the training list |
| 7602 | the names in gallery-7602.txt | all others | that file, one picture name per line |
| 7805 | all | nothing | nothing |
"""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from goal.datasets import goal_lists, released
from goal.datasets.captions_file import Line
from goal.datasets.unpack import unpack
from goal.errors import UserError
from goal.runtime.download import Remote, fetch

ARCHIVE = Remote(
    "https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz",
    sha256="d865c244150168d3f25daaad0bf5b70b2123cf3e83ca7b0e207d5b26943c5fc7",
)
FOLDER = "densely_captioned_images"
COUNT = 7805
TEST_LIST = "DCI_test.json"
TRAIN_LIST = goal_lists.CROPS_TO_TRAIN
OTHER_LIST = "gallery-7602.txt"
# The files that name the pictures of each gallery.
LISTS = {1999: [TEST_LIST], 7444: [TEST_LIST, TRAIN_LIST], 7602: [OTHER_LIST], 7805: []}


def read(root: Path, gallery: int) -> tuple[list[Line], Path]:
    """The rows, fetched, and the folder of their pictures, which a user has put there."""
    split_of = _splits(root, LISTS[gallery])
    places = ("photos", f"{FOLDER}/photos", "sa_000138", "pictures")
    pictures = released.by_hand("dci", root, *places, archive="sa_000138.tar")
    annotations = _annotations(root)
    if annotations is None:
        unpacked = unpack(*fetch([ARCHIVE], root, "DCI's captions"), root / "captions")
        annotations = _annotations(unpacked) or unpacked
    files = sorted(annotations.glob("*.json"))
    released.expect(annotations, "annotated pictures", len(files), COUNT)
    lines = [_line(file, split_of) for file in tqdm(files, "DCI's captions", unit=" files")]
    splits = [line.values.get(released.SPLIT) for line in lines]
    if splits.count("test") != gallery:
        raise UserError(
            f"{root}: {' and '.join(LISTS[gallery])}: {splits.count('test'):,} of the pictures named there"
            f" are annotated, expected {gallery:,}: another list, or cut off"
        )
    return [line for line, split in zip(lines, splits, strict=True) if split != ""], pictures


def _annotations(root: Path) -> Path | None:
    return released.first_folder(root / FOLDER, "annotations", "complete")


def _splits(root: Path, lists: list[str]) -> Callable[[str], str]:
    """What gives a picture's split by its file name; "": it is in none."""
    for name in lists:
        if not (root / name).exists():
            origin = "bring your own" if name == OTHER_LIST else released.GOAL_LISTS
            use = f"it names this gallery's pictures: {origin} (docs/data.md, Galleries)"
            raise UserError(f"{root / name}: not found; {use}")
    test, train, others = set(), set(), "train"
    if not lists:
        others = "test"
    elif lists == [OTHER_LIST]:
        test = set((root / OTHER_LIST).read_text(encoding="utf-8").split())
    else:
        test = {entry.name for entry in goal_lists.read(root / TEST_LIST)}
        if (root / TRAIN_LIST).exists():
            # GOAL does not use the other 361 pictures: they serve for validation.
            train, others = {f"{crop.crop_of}.jpg" for crop in goal_lists.read(root / TRAIN_LIST)}, "val"
        if TRAIN_LIST in lists:
            test, train, others = test | train, set(), ""
    return lambda name: "test" if name in test else "train" if name in train else others


def _line(file: Path, split_of: Callable[[str], str]) -> Line:
    values = released.read_json(file)
    try:
        name = values["image"]
        caption = f"{values['short_caption'].strip()} {values['extra_caption'].strip()}".strip()
        return released.line(file.name, Path(name).stem, name, [caption], split_of(name))
    except (LookupError, TypeError, AttributeError):
        return Line(file.name, {}, "expected image, short_caption and extra_caption")
