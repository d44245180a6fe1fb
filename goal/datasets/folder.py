"""Bring your own: a folder of pictures with a captions file (folder_rows says what a row may hold)."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal.datasets import captions_file, manifest
from goal.datasets.folder_rows import CAPTION_FIELDS, IMAGE_FIELDS, Gathering
from goal.datasets.manifest import Collected, Row
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Folder, Params

log = logging.getLogger(__name__)


def collect(params: "Params", target: Path) -> Collected:
    """Read the rows and probe the pictures of params.data.path; nothing is written to `target`.

    Raises UserError where no row can be used, or train or test stays empty.
    """
    settings = params.data.folder
    file = captions_file.find(Path(params.data.path))
    gathering = Gathering(file.parent, settings.split_column)
    for line in tqdm(captions_file.read(file), file.name, unit=" rows"):
        gathering.add(line)
    _check_fields(file, gathering)
    rows = gathering.probe(params.data)
    if not rows:
        first = gathering.rejected[0]
        raise UserError(
            f"{file}: none of {gathering.rows} rows can be used; the first, {first.row}: {first.image}: "
            f"{first.reason}: {first.detail}"
        )
    splits = manifest.by_split((row, split or share(row.id, params.seed, settings)) for row, split in rows)
    _check_splits(file, splits, settings)
    return Collected(splits, rejected=gathering.rejected, cleaned=gathering.cleaned)


def share(name: str, seed: int, settings: "Folder") -> str:
    """The split of an id: a hash that depends on it and the seed alone, so that new rows move no old one."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn < settings.test_share:
        return "test"
    return "val" if drawn < settings.test_share + settings.val_share else "train"


def _check_fields(file: Path, gathering: Gathering) -> None:
    if not gathering.rows:
        raise UserError(f"{file}: no rows; each names an image and its caption")
    found = ", ".join(sorted(map(str, gathering.fields))) or "none"
    for names in (IMAGE_FIELDS, CAPTION_FIELDS):
        if gathering.fields and not gathering.fields & set(names):
            raise UserError(f"{file}: no row has a field {' or '.join(names)}; fields found: {found}")
    column = gathering.split_column
    if column and column not in gathering.fields:
        raise UserError(f"{file}: no row has data.folder.split_column {column!r}; fields found: {found}")


def _check_splits(file: Path, splits: dict[str, list[Row]], settings: "Folder") -> None:
    if not splits["val"]:
        log.warning("%s: no picture for val: training goes without validation", file)
    for split in ("train", "test"):
        if not splits[split]:
            fix = "add pictures, or change data.folder.val_share and test_share"
            if settings.split_column:
                fix = f"mark some with {split} in {settings.split_column}"
            usable = sum(map(len, splits.values()))
            raise UserError(f"{file}: {usable} usable pictures and none for {split}: {fix}")
