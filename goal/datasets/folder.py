"""Bring your own: a folder of pictures with a captions file (folder_rows says what a row may hold)."""

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal.datasets import captions_file, manifest
from goal.datasets.folder_rows import CAPTION_FIELDS, IMAGE_FIELDS, Gathering
from goal.datasets.images import ImageError, probe_all
from goal.datasets.manifest import Collected, Row
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Folder, Params

log = logging.getLogger(__name__)


def collect(params: "Params", folder: Path) -> Collected:
    """Read the rows and probe the pictures of params.data.path; nothing is written to `folder`.

    Raises UserError where no row can be used, or train or test stays empty.
    """
    del folder
    settings = params.data.folder
    file = captions_file.find(Path(params.data.path))
    gathering = Gathering(file.parent, settings.split_column)
    for line in tqdm(captions_file.read(file), file.name, unit=" rows"):
        gathering.add(line)
    _check_fields(file, gathering)
    rows = probe(file.parent, gathering, params.data.max_megapixels, "folder")
    splits: dict[str, list[Row]] = {split: [] for split in manifest.SPLITS}
    for row, split in rows:
        splits[split or share(row.id, params.seed, settings)].append(row)
    _check_splits(file, gathering, splits, settings)
    return Collected(splits, rejected=gathering.rejected)


def share(name: str, seed: int, settings: "Folder") -> str:
    """The split of an id: a hash that depends on it and the seed alone, so that new rows move no old one."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn < settings.test_share:
        return "test"
    return "val" if drawn < settings.test_share + settings.val_share else "train"


def probe(folder: Path, gathering: Gathering, max_megapixels: float, source: str) -> list[tuple[Row, str]]:
    """The pictures below `folder` that have captions and decode, each with its split; others are rejected."""
    named = {path: one for path, one in gathering.pictures.items() if one.captions}
    files = [(folder / path).as_posix() for path in named]
    rows = []
    for (path, picture), file, size in zip(
        named.items(), files, probe_all(files, max_megapixels, folder.name), strict=True
    ):
        if isinstance(size, ImageError):
            gathering.reject(picture.row, picture.id, path, size)
        else:
            rows.append((Row(picture.id, file, *size, tuple(picture.captions), source), picture.split))
    return rows


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


def _check_splits(file: Path, gathering: Gathering, splits: dict[str, list[Row]], settings: "Folder") -> None:
    usable = sum(map(len, splits.values()))
    if not usable:
        first = gathering.rejected[0]
        raise UserError(
            f"{file}: none of {gathering.rows} rows can be used; the first, {first.row}: {first.image}: "
            f"{first.reason}: {first.detail}"
        )
    for split in manifest.SPLITS:
        if splits[split]:
            continue
        if split == "val":
            log.warning("%s: no picture for val: training goes without validation", file)
            continue
        mend = (
            f"mark some with {split} in {settings.split_column}"
            if settings.split_column
            else "add pictures, or change data.folder.val_share and test_share"
        )
        raise UserError(f"{file}: {usable} usable pictures and none for {split}: {mend}")
