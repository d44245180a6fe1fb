"""Bring your own: a folder of pictures with a captions file (folder_rows says what a row may hold)."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal.datasets import captions_file, copies, manifest
from goal.datasets.captions_file import Line
from goal.datasets.folder_rows import IMAGE_FIELDS, SPLIT_FIELD, Gathering, Usable, count_reasons
from goal.datasets.manifest import Collected, Row
from goal.errors import UserError
from goal.text import language

if TYPE_CHECKING:
    from goal.config import Folder, Params

log = logging.getLogger(__name__)

# Above this share of captions that are one and the same a warning says so.
ALIKE = 0.1


def collect(params: "Params", target: Path) -> Collected:
    """Read the rows and probe the pictures of params.data.path; nothing is written to `target`.

    Raises UserError where no row can be used, more are lost than data.max_rejected allows, or train or test
    stays empty.
    """
    settings = params.data.folder
    file = captions_file.find(Path(params.data.path))
    found, gathering = _usable(params, file, tqdm(captions_file.read(file), file.name, unit=" rows"))
    gathering.check_rejected(file, params.data.max_rejected)
    if not settings.split_column and SPLIT_FIELD in gathering.fields:
        log.info("%s: its column %s says which pictures are for train, val and test", file, SPLIT_FIELD)
    first = copies.first_alike(found, settings.near_copies)
    # A picture goes where its copies go: where a row of one of them says, or where the first is drawn to.
    named = {first[one.row.id]: one.split for one in reversed(found) if one.split}
    drawn = {name: named.get(name) or share(name, params.seed, settings) for name in first.values()}
    splits = manifest.by_split((one.row, one.split or drawn[first[one.row.id]]) for one in found)
    _check_splits(file, splits, gathering, settings)
    _warn_of_alike_captions(file, found)
    return Collected(splits, {}, gathering.rejected, gathering.cleaned, gathering.tagged, first)


def look(params: "Params", count: int, sentences: str) -> str:
    """What the captions file holds, by its fields and first `count` rows, whose pictures are opened.

    sentences: Punkt's parameters (`pairs.sentences`); captions in another language are named.
    Raises UserError where `collect` would because of the fields, or where none of these rows can be used.
    """
    file = captions_file.find(Path(params.data.path))
    found, gathering = _usable(params, file, islice(captions_file.read(file), count))
    fields = ", ".join(sorted(map(str, gathering.fields)))
    lost = ", ".join(f"{number} x {reason}" for reason, number in count_reasons(gathering.rejected).items())
    words = [f"{file}: fields {fields}; the first {gathering.rows} rows give {len(found)} usable pictures"]
    if lost:
        words.append(f"rejected: {lost}; the first: {gathering.rejected[0]}")
    words.append(language.doubt((caption for one in found for caption in one.row.captions), sentences))
    return "; ".join(filter(None, words))


def _usable(params: "Params", file: Path, lines: Iterable[Line]) -> tuple[list[Usable], Gathering]:
    """The usable pictures of these rows of a captions file; raises UserError where there are none."""
    settings = params.data.folder
    gathering = Gathering(file.parent, settings.split_column, settings.caption_column)
    for line in lines:
        gathering.add(line)
    _check_fields(file, gathering)
    found = gathering.probe(params.data)
    if not found:
        first = gathering.rejected[0]
        raise UserError(f"{file}: none of {gathering.rows} rows can be used; the first, {first}")
    return found, gathering


def share(name: str, seed: int, settings: "Folder") -> str:
    """The split of an id: a hash of it and the seed alone, so that adding rows moves no other row."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    if drawn < settings.test_share:
        return "test"
    return "val" if drawn < settings.test_share + settings.val_share else "train"


def _check_fields(file: Path, gathering: Gathering) -> None:
    if not gathering.rows:
        raise UserError(f"{file}: no rows; each names an image and its caption")
    found = ", ".join(sorted(map(str, gathering.fields))) or "none"
    for names in (IMAGE_FIELDS, gathering.caption_fields):
        if gathering.fields and not gathering.fields & set(names):
            raise UserError(f"{file}: no row has a field {' or '.join(names)}; fields found: {found}")
    column = gathering.split_column
    if column and column not in gathering.fields:
        raise UserError(f"{file}: no row has data.folder.split_column {column!r}; fields found: {found}")
    if several := gathering.ambiguous:
        raise UserError(
            f"{file}: captions in the fields {' and '.join(several)}; set data.folder.caption_column to the "
            "one to use (GOAL learns from the long ones)"
        )


def _warn_of_alike_captions(file: Path, found: list[Usable]) -> None:
    captions = Counter(caption for one in found for caption in one.row.captions)
    (caption, count), total = captions.most_common(1)[0], captions.total()
    if count > 1 and count > total * ALIKE:
        words = "%s: %d of %d captions are the same, %.60r: nothing tells their pictures apart"
        log.warning(words, file, count, total, caption)


def _check_splits(file: Path, splits: dict[str, list[Row]], gathering: Gathering, settings: "Folder") -> None:
    if not splits["val"]:
        log.warning("%s: no picture for val: training goes without validation", file)
    for split in ("train", "test"):
        if not splits[split]:
            fix = "add pictures, or change data.folder.val_share and test_share"
            if settings.split_column:
                fix = f"mark some with {split} in {settings.split_column}"
            elif SPLIT_FIELD in gathering.fields:
                fix = (
                    f"mark some with {split} in {SPLIT_FIELD}, or rename that column to have the splits drawn"
                )
            usable = sum(map(len, splits.values()))
            raise UserError(f"{file}: {usable} usable pictures and none for {split}: {fix}")
