"""The JSON lists of the GOAL release as they are, beside one's own copies of the pictures.

A list is [{"filename", "caption", ...}]; its paths are another machine's, so only the last part of each
counts and pictures are looked for by name. `test` or `train` in a list's own name says its split. Rows with a
similarity_score are crops, <picture>.jpg_results/<picture>_max_<number>.png, or original_image.jpg there
where the whole picture won: those of test pictures become joint.parquet; crops to train with are not taken,
`goal pairs` mines them.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from goal.datasets import manifest, released
from goal.datasets.columns import Columns
from goal.datasets.folder_rows import Gathering
from goal.datasets.manifest import Collected, Rejected
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

_CROP = re.compile(r"(?P<picture>.+)\.\w+_results")
WHOLE = "original_image"
CROPS_TO_TRAIN = "DCI_segment_only_sim_max_del_org.json"


@dataclass(frozen=True)
class Entry:
    """A row: where it stands, a picture's file name, its caption, and for a crop its picture's bare name."""

    row: str
    name: str
    caption: str
    crop_of: str = ""


def read(path: Path) -> list[Entry]:
    """The rows of a list in their order; raises UserError, naming the row, for any other file."""
    rows = released.read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects with filename and caption")
    return [_entry(path, number, row) for number, row in enumerate(rows)]


def collect(params: "Params", target: Path) -> Collected:
    """The lists in the folder (or the one list) data.path, with the pictures below data.download.root."""
    root, path = released.folder(params), Path(params.data.path)
    lists = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not lists:
        raise UserError(f"{path}: no .json list in it; set data.path to the folder of the release's lists")
    files = _files(root)
    lines, crops, rejected = [], [], []
    for file in lists:
        words = re.split(r"[^a-z]+", file.stem.lower())
        split = next((split for split in manifest.SPLITS if split in words), "")
        if not split:
            log.warning(
                "%s: left out: neither train nor val nor test is in its name; a list of crops to train with,"
                " as GOAL's %s, is not needed: `dvc repro pairs` mines them",
                file,
                CROPS_TO_TRAIN,
            )
            continue
        for entry in read(file):
            if not entry.crop_of:
                name, image = PurePosixPath(entry.name).stem, files.get(entry.name, entry.name)
                lines.append(released.line(entry.row, name, image, [entry.caption], split))
            elif split == "test":
                crops.append(entry)
            else:
                reason = ("crop to train with", f"in {file.name}")
                rejected.append(Rejected(entry.row, entry.name, entry.name, *reason))
    whole = released.rows(params, lines, root)
    images = {row.id: row.image for row in whole.splits["test"]}
    if params.data.limit:
        crops = [crop for crop in crops if crop.crop_of in images]
    gathering = _crops(crops, images, root, files)
    joint = [
        {"id": row.id, "of": row.id.removesuffix("-crop"), "image": row.image, "caption": row.captions[0]}
        # A crop is a file of its own, and its box is all of that.
        | {"x1": 0.0, "y1": 0.0, "x2": float(row.width), "y2": float(row.height)}
        for row, *_ in gathering.probe(params.data)
    ]
    released.check_lost(params, gathering)
    return Collected(
        whole.splits,
        {"joint": manifest.table(joint, manifest.JOINT)} if joint else {},
        whole.rejected + rejected + gathering.rejected,
        whole.cleaned + gathering.cleaned,
    )


def _entry(path: Path, number: int, row: object) -> Entry:
    place = f"{path.name}[{number}]"
    if not isinstance(row, dict) or not isinstance(row.get("filename"), str) or "caption" not in row:
        raise UserError(f"{path}: {place}: expected an object with filename and caption")
    file = PurePosixPath(row["filename"].replace("\\", "/"))
    if "similarity_score" not in row:
        return Entry(place, file.name, row["caption"])
    crop = _CROP.fullmatch(file.parent.name)
    if crop is None:
        raise UserError(
            f"{path}: {place}: a crop lies in the folder <picture>.jpg_results: {row['filename']!r}"
        )
    return Entry(place, file.name, row["caption"], crop["picture"])


def _files(root: Path) -> dict[str, str]:
    """Every file below the root by its name, as a path from there; of two of one name the first in order."""
    paths = sorted((path for path in root.rglob("*") if path.is_file()), reverse=True)
    return {path.name: path.relative_to(root).as_posix() for path in paths}


def _crops(crops: Iterable[Entry], images: dict[str, str], root: Path, files: dict[str, str]) -> Gathering:
    """The crops of the test pictures `images`, by id."""
    gathering = Gathering(root, Columns(), published=True)
    for crop in crops:
        if crop.crop_of not in images:
            gathering.reject(crop.row, crop.name, crop.name, "crop of no test picture", crop.crop_of)
            continue
        whole = PurePosixPath(crop.name).stem == WHOLE
        image = images[crop.crop_of] if whole else files.get(crop.name, crop.name)
        gathering.add(released.line(crop.row, f"{crop.crop_of}-crop", image, [crop.caption], ""))
    return gathering
