"""The JSON lists of the GOAL release as they are, beside one's own copies of the pictures.

A list is [{"filename", "caption", ...}]; its paths are another machine's, so only the last part of each
counts and pictures are looked for by name. `test` or `train` in a list's own name says its split. Rows with a
similarity_score are crops, <picture>.jpg_results/<picture>_max_<number>.png, or original_image.jpg there
where the whole picture won: those of test pictures become joint.parquet; crops to train with are not taken,
`goal pairs` mines them.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from goal.datasets import manifest, released
from goal.datasets.captions_file import Line
from goal.datasets.images import ImageError, probe_all
from goal.datasets.manifest import Collected, Rejected, Row
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

_CROP = re.compile(r"(?P<picture>.+)\.\w+_results")
WHOLE = "original_image"
CROPS_TO_TRAIN = "DCI_segment_only_sim_max_del_org.json"
PAGE = "https://github.com/PerceptualAI-Lab/GOAL"
FOLDER = f"{PAGE}/tree/main/datasets"
RELEASE = released.Release(
    name="goal_lists",
    page=PAGE,
    licence="that of the set behind each list: DOCCI CC BY 4.0, DCI CC BY-NC 4.0",
    by_hand=f"put lists of {FOLDER} into data.path and the pictures they name, in any folders, into"
    " data.download.root",
)


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
    del target
    root = released.root(params, RELEASE)
    path = Path(params.data.path)
    lists = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not lists:
        raise UserError(f"{path}: no .json list in it; set data.path to the folder of the release's lists")
    files = _files(root)
    lines, crops, rejected = [], [], []
    for file in lists:
        split = _split(file)
        if not split:
            log.warning(
                "%s: left out: neither train nor val nor test is in its name; a list of crops to train with,"
                " as GOAL's %s, is not needed: `dvc repro pairs` mines them",
                file,
                CROPS_TO_TRAIN,
            )
            continue
        entries = read(file)
        lines += [_line(entry, files, split) for entry in entries if not entry.crop_of]
        found = [entry for entry in entries if entry.crop_of]
        if split == "test":
            crops += found
        else:
            rejected += [_refused(crop, "crop to train with", f"in {file.name}") for crop in found]
    collected = released.collect(params, RELEASE, lines, root)
    joint, unusable = _joint(crops, collected.splits["test"], root, files, params.data.max_megapixels)
    tables = {"joint": manifest.table(joint, manifest.JOINT)} if joint else {}
    return Collected(collected.splits, tables, collected.rejected + rejected + unusable)


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


def _split(file: Path) -> str:
    words = set(re.split(r"[^a-z]+", file.stem.lower()))
    return next((split for split in manifest.SPLITS if split in words), "")


def _files(root: Path) -> dict[str, str]:
    """Every file below the root by its name, as a path from there; of two of one name the first in order."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found.setdefault(path.name, path.relative_to(root).as_posix())
    return found


def _line(entry: Entry, files: dict[str, str], split: str) -> Line:
    stem = PurePosixPath(entry.name).stem
    return released.line(entry.row, stem, files.get(entry.name, entry.name), [entry.caption], split)


def _refused(crop: Entry, reason: str, detail: str) -> Rejected:
    return Rejected(crop.row, crop.name, crop.name, reason, detail)


def _joint(
    crops: list[Entry], test: list[Row], root: Path, files: dict[str, str], max_megapixels: float
) -> tuple[list[dict[str, object]], list[Rejected]]:
    """Rows of joint.parquet: each crop is a file of its own, and its box is all of that."""
    known = {row.id: row for row in test}
    rows, rejected = [], []
    usable = []
    for crop in crops:
        if crop.crop_of in known:
            usable.append(crop)
        else:
            rejected.append(_refused(crop, "crop of no test picture", crop.crop_of))
    paths = [
        known[crop.crop_of].image
        if Path(crop.name).stem == WHOLE
        else (root / files.get(crop.name, crop.name)).as_posix()
        for crop in usable
    ]
    for crop, path, size in zip(usable, paths, probe_all(paths, max_megapixels, "crops"), strict=True):
        if isinstance(size, ImageError):
            rejected.append(Rejected(crop.row, crop.name, path, size.reason, size.detail))
        else:
            box = {"x1": 0.0, "y1": 0.0, "x2": float(size[0]), "y2": float(size[1])}
            name = f"{crop.crop_of}-crop"
            rows.append({"id": name, "of": crop.crop_of, "image": path, **box, "caption": crop.caption})
    return rows, rejected
