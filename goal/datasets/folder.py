"""Bring your own: a data set of any shape that goal.datasets.shapes knows."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from goal import language
from goal.datasets import copies, given_boxes, manifest, shapes
from goal.datasets.captions_file import Line
from goal.datasets.columns import LONG, SPLIT, TURNS, Columns, plain, shown
from goal.datasets.folder_rows import Gathering, Usable, count_reasons
from goal.datasets.manifest import Collected, Row
from goal.datasets.shapes import Found
from goal.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from goal.config import Data, Folder, Params

log = logging.getLogger(__name__)

# Above this share of captions that are one and the same a warning says so.
ALIKE = 0.1


def collect(params: "Params", target: Path) -> Collected:
    """Read the rows and probe the pictures of params.data.path; nothing is written to `target`.

    Raises UserError where no row can be used, more are lost than data.max_rejected allows, or train or test
    stays empty.
    """
    settings = params.data.folder
    shape = find(params.data)
    lines = shape.lines
    if params.data.limit and params.data.limit_order == "first":
        lines = islice(lines, params.data.limit)
    found, gathering = usable(params, shape, tqdm(lines, shape.file.name, unit=" rows"))
    log.info("%s", described(shape, gathering))
    gathering.check_rejected(shape.file, params.data.max_rejected)
    if not settings.split_column and SPLIT in gathering.fields:
        log.info("%s: its column %s says which pictures are for train, val and test", shape.file, SPLIT)
    first = copies.first_alike(found, settings.near_copies)
    group_of = _groups(found, first)
    # A picture goes where its group goes: where a row of one of them says, or where the first is drawn to.
    named = {group_of[one.row.id]: one.split for one in reversed(found) if one.split}
    drawn = {name: named.get(name) or share(name, params.seed, settings) for name in group_of.values()}
    split_of = {one.row.id: one.split or drawn[group_of[one.row.id]] for one in found}
    splits = manifest.by_split((one.row, split_of[one.row.id]) for one in found)
    _check_splits(shape.file, splits, gathering, settings)
    _warn_of_alike_captions(shape.file, found)
    _warn_of_torn_groups(shape.file, found, split_of)
    tables = {name: _short(found, split_of, split) for name, split in SHORT.items() if settings.short_column}
    tables["boxes"] = _boxes(found)
    tables = {name: table for name, table in tables.items() if table.num_rows}
    return Collected(splits, tables, gathering.rejected, gathering.cleaned, gathering.tagged, first)


# Tables of the short captions of a split: those of test are a benchmark, those of val choose a mixture.
SHORT = {"short": "test", "short_val": "val", "short_train": "train"}


def find(data: "Data") -> Found:
    """The data set at data.path; raises UserError where there is none that can be read."""
    return shapes.find(Path(data.path), Columns.of(data.folder), data.images, data.folder.separator)


def described(shape: Found, gathering: Gathering) -> str:
    """What a set was read as, in one line."""
    used = {
        what: " and ".join(repr(gathering.fields.get(name, name)) for name in names)
        for what, names in gathering.used.items()
    }
    return f"{shape.file}: read as {shape.words}; pictures: {used['picture']}; captions: {used['caption']}"


def look(params: "Params", count: int, sentences: str) -> str:
    """What the data set holds, by its fields and first `count` rows, whose pictures are opened.

    sentences: Punkt's parameters (`pairs.sentences`); captions in another language are named.
    Raises UserError where `collect` would because of the fields, or where none of these rows can be used.
    """
    shape = find(params.data)
    found, gathering = usable(params, shape, islice(shape.lines, count))
    fields = shown(gathering.fields.values())
    lost = ", ".join(f"{number} x {reason}" for reason, number in count_reasons(gathering.rejected).items())
    words = [
        f"{described(shape, gathering)}; fields {fields}; the first {gathering.rows} rows give {len(found)} "
        "usable pictures"
    ]
    if lost:
        words.append(f"rejected: {lost}; the first: {gathering.rejected[0]}")
    words.append(language.doubt((caption for one in found for caption in one.row.captions), sentences))
    return "; ".join(filter(None, words))


def usable(params: "Params", shape: Found, lines: Iterable[Line]) -> tuple[list[Usable], Gathering]:
    """The usable pictures of these rows; raises UserError where there are none."""
    gathering = Gathering(shape.pictures, Columns.of(params.data.folder))
    gathering.fields |= {plain(name): name for name in shape.columns}
    for line in lines:
        gathering.add(line)
    _check_fields(shape.file, gathering)
    found = gathering.probe(params.data)
    if not found:
        first = gathering.rejected[0]
        raise UserError(f"{shape.file}: none of {gathering.rows} rows can be used; the first, {first}")
    return found, gathering


def _groups(found: list[Usable], first: dict[str, str]) -> dict[str, str]:
    """For the id of each picture the name of those that share its split: its copies, and its user's group."""
    group_of = dict(first)
    name_of: dict[str, str] = {}  # of a set of copies that was joined to others

    def name(label: str) -> str:
        while label in name_of:
            label = name_of[label]
        return label

    for one in found:
        if one.group:
            # A group is drawn by its own name, so that new rows of it do not move it.
            whole, own = name(f"group {one.group}"), name(first[one.row.id])
            if whole != own:
                name_of[own] = whole
    return {picture: name(label) for picture, label in group_of.items()}


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
    found, columns = shown(gathering.fields.values()), gathering.columns
    for what, names in (("image", columns.images), ("caption", columns.texts)):
        if gathering.fields and not gathering.fields.keys() & set(map(plain, names)):
            own = f"; data.folder.{what}_column names another"
            known = [name for name in names if name not in (*LONG, *TURNS)]
            raise UserError(f"{file}: no row has a field {' or '.join(known)}; fields found: {found}{own}")
    named = {"split": (columns.split,), "group": (columns.group,), "short": columns.short}
    named["caption"] = columns.captions
    for what, names in named.items():
        for name in filter(None, names):
            if plain(name) not in gathering.fields:
                parameter = f"data.folder.{what}_column {name!r}"
                raise UserError(f"{file}: no row has {parameter}; fields found: {found}")
    if gathering.ambiguous:
        several = [gathering.fields[name] for name in gathering.ambiguous]
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


def _warn_of_torn_groups(file: Path, found: list[Usable], split_of: dict[str, str]) -> None:
    parts = {(one.group, split_of[one.row.id]) for one in found if one.group}
    torn = sum(count > 1 for count in Counter(group for group, _ in parts).values())
    if torn:
        log.warning("%s: %d groups are in more than one split, as their rows say", file, torn)


def _short(found: list[Usable], split_of: dict[str, str], split: str) -> "pa.Table":
    """The pictures of a split that have short captions, with these."""
    chosen = (one for one in found if one.short and split_of[one.row.id] == split)
    return manifest.table([replace(one.row, captions=one.short) for one in chosen], manifest.MANIFEST)


def _boxes(found: list[Usable]) -> "pa.Table":
    """The boxes that came with the pictures, cut to them."""
    every = ((one.row, box) for one in found for box in one.boxes)
    cut = ((row.id, given_boxes.inside(box, row.width, row.height)) for row, box in every)
    return manifest.table([{"id": name, **box} for name, box in cut if box], manifest.BOXES)


def _check_splits(file: Path, splits: dict[str, list[Row]], gathering: Gathering, settings: "Folder") -> None:
    if not splits["val"]:
        log.warning("%s: no picture for val: training goes without validation", file)
    for split in ("train", "test"):
        if not splits[split]:
            fix = "add pictures, or change data.folder.val_share and test_share"
            if settings.split_column:
                fix = f"mark some with {split} in {settings.split_column}"
            elif SPLIT in gathering.fields:
                fix = f"mark some with {split} in {SPLIT}, or rename that column to have the splits drawn"
            usable = sum(map(len, splits.values()))
            raise UserError(f"{file}: {usable} usable pictures and none for {split}: {fix}")
