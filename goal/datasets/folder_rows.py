"""Rows of a captions file or a published set, gathered by picture, or listed with what is wrong.

A row names a picture (relative to the folder of pictures, or inside another file) and its caption or
captions, perhaps an `id`, a split, a group and short captions; goal.datasets.columns says in which columns.
Rows of the same picture are joined. Captions are cleaned here, once for all stages.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from goal.cleaning import clean, strip_tags
from goal.datasets import given_boxes, manifest
from goal.datasets.captions_file import Line
from goal.datasets.columns import (
    BOXES,
    CAPTIONS,
    LONG,
    SPLIT,
    SPLIT_NAMES,
    TURNS,
    URL,
    Columns,
    answer,
    plain,
    value,
)
from goal.datasets.given_boxes import Given
from goal.datasets.images import ImageError, probe_all
from goal.datasets.manifest import Rejected, Row
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Data

# Rejected, but nothing is lost by it.
REPEATED = "same picture and caption again"
# The column may mean something else.
NO_BOXES = "boxes of no known form"
EXAMPLES = 3


class Fault(Exception):
    """Why a row, or one of its captions, is not used: a reason that can be counted, and what exactly."""


@dataclass
class Picture:
    """What the rows say of one picture; split "": by the shares, group "": in none.

    short, boxes: its short captions and own boxes. rows: the row that each caption came from first. cleaned,
    tagged: how many of its captions the cleaning changed, and how many had tags of HTML.
    """

    row: str
    id: str
    split: str
    group: str = ""
    captions: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    boxes: list[Given] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    cleaned: int = 0
    tagged: int = 0


class Usable(NamedTuple):
    """A picture that decodes, what its rows name ("": nothing) and its thumbnail (images.Probed)."""

    row: Row
    split: str
    group: str
    short: tuple[str, ...]
    boxes: list[Given]
    thumbnail: bytes


class Gathering:
    """The pictures below a folder, row by row, and the rows that cannot be used.

    published: the captions are a published set's, which stay as they are, save for CLIP's own cleaning.
    cleaned, tagged: how many captions the cleaning changed, and how many had tags of HTML, of the pictures
    that `probe` found usable. fields: the columns of the rows, as written, by their plain names. used: of
    these the columns that pictures and captions came from. ambiguous: the caption columns of a row that has
    several.
    """

    def __init__(self, folder: Path, columns: Columns, published: bool = False) -> None:
        self.folder = folder
        self.columns = columns
        self.published = published
        self.pictures: dict[str, Picture] = {}
        self.rejected: list[Rejected] = []
        self.rows = 0
        self.cleaned = self.tagged = 0
        self.fields: dict[str, str] = {}
        self.used: dict[str, dict[str, None]] = {"picture": {}, "caption": {}}
        self.ambiguous: list[str] = []
        self._ids: dict[str, str] = {}
        self._names = {
            "images": [plain(name) for name in columns.images],
            "captions": [plain(name) for name in columns.captions],
            "short": [plain(name) for name in columns.short],
        }
        self._split_name, self._group_name = plain(columns.split or SPLIT), plain(columns.group)

    def add(self, line: Line) -> None:
        """Take a row in, or list it as rejected."""
        self.rows += 1
        values = {}
        for written, one in line.values.items():
            name = plain(written)
            if values.get(name) is None:
                values[name] = one
            self.fields.setdefault(name, written)
        column, name = value(values, self._names["images"])
        try:
            if line.fault:
                raise Fault("unreadable row", line.fault)
            path = _inside(self.folder, name, self.columns)
            captions = self._captions(values)
            picture = self._picture(line, values, path)
        except Fault as fault:
            self.reject(line.row, values.get("id"), name, *fault.args)
            return
        self.used["picture"][column] = None
        for name in BOXES if not self.published else ():
            if values.get(name) is not None:
                try:
                    picture.boxes += given_boxes.parse(values[name])
                except ValueError as error:
                    self.reject(line.row, picture.id, path, NO_BOXES, str(error))
        short = [(one, "short") for name in self._names["short"] for one in _listed(values.get(name)) if one]
        for caption, role in [*((one, "") for one in captions), *short]:
            try:
                cleaned = _text(caption)
                text = cleaned if self.published else _own(cleaned)
                if role:
                    picture.short += [text] if text not in picture.short else []
                    continue
                first = picture.rows.setdefault(text, line.row)
                # Among the five captions of some of COCO's pictures one comes twice.
                if text in picture.captions and not (self.published and first == line.row):
                    raise Fault(REPEATED, f"first in {first}")
            except Fault as fault:
                self.reject(line.row, picture.id, path, *fault.args)
            else:
                picture.captions.append(text)
                picture.cleaned += cleaned != caption.strip()
                picture.tagged += text != cleaned

    def probe(self, data: "Data") -> list[Usable]:
        """The pictures that have captions and decode; others are rejected."""
        named = {path: one for path, one in self.pictures.items() if one.captions}
        if 0 < data.limit < len(named) and data.limit_order == "random":
            # By a hash, so that the same pictures are taken whatever other rows there are.
            chosen = set(sorted(named, key=lambda path: hashlib.sha256(path.encode()).digest())[: data.limit])
            named = {path: one for path, one in named.items() if path in chosen}
        elif data.limit:
            named = dict(islice(named.items(), data.limit))
        files = [(self.folder / path).as_posix() for path in named]
        found = probe_all(files, data.max_megapixels, self.folder.name, data.digest)
        rows = []
        # A part of a set has other numbers: its name says so wherever a result names its source.
        source = f"{data.source}, limit {data.limit}" if data.limit else data.source
        for (path, one), file, probed in zip(named.items(), files, found, strict=True):
            if isinstance(probed, ImageError):
                self.reject(one.row, one.id, path, probed.reason, probed.detail)
            else:
                self.cleaned += one.cleaned
                self.tagged += one.tagged
                captions = tuple(one.captions)
                row = Row(one.id, file, *probed.size, captions, source, probed.digest)
                rows.append(Usable(row, one.split, one.group, tuple(one.short), one.boxes, probed.thumbnail))
        return rows

    def check_rejected(self, source: Path, allowed: float) -> None:
        """Raise UserError, with reasons and examples, where more than this share of the rows is lost."""
        lost = [one for one in self.rejected if one.reason not in (REPEATED, NO_BOXES)]
        count = len({one.row for one in lost})
        # Rounded, so that 29 of 100 rows are not more than 0.29 of them.
        if count > round(allowed * self.rows, 6):
            reasons = ", ".join(f"{number:,} x {reason}" for reason, number in count_reasons(lost).items())
            examples = "; ".join(map(str, lost[:EXAMPLES]))
            raise UserError(
                f"{source}: {count:,} of {self.rows:,} rows cannot be used ({reasons}); data.max_rejected "
                f"allows {allowed:.0%}. The first: {examples}. Correct them, or set data.max_rejected: 1.0 "
                "(once: `goal data --accept-rejected`) to go on without them"
            )

    def reject(self, row: str, name: Any, image: Any, reason: str, detail: str) -> None:
        """List a row as not used."""
        shown = ("" if value is None else _storable(str(value)) for value in (name, image))
        self.rejected.append(Rejected(row, *shown, reason, _storable(detail)))

    def _picture(self, line: Line, values: dict[str, Any], path: str) -> Picture:
        split = self._split(values)
        group = values.get(self._group_name) if self.columns.group else None
        group = "" if group is None else _storable(str(group))
        known = self.pictures.get(path)
        if known is None:
            name = _id(values, path)
            other = self._ids.setdefault(name, path)
            if other != path:
                raise Fault("id of another picture", f"id {name!r} is that of {other}")
            known = self.pictures[path] = Picture(line.row, name, split, group)
        elif split and known.split not in ("", split):
            raise Fault("picture in two splits", f"{split} here, {known.split} in {known.row}")
        elif group and known.group not in ("", group):
            raise Fault("picture in two groups", f"{group!r} here, {known.group!r} in {known.row}")
        known.split, known.group = known.split or split, known.group or group
        return known

    def _split(self, values: dict[str, Any]) -> str:
        """The split that a row names; "": none, and params name no column that must."""
        column = self.columns.split
        named = values.get(self._split_name)
        if not column and named in (None, ""):
            return ""
        split = SPLIT_NAMES.get(named.strip().lower()) if isinstance(named, str) else None
        if split is None:
            fix = "" if column else f"; rename the column {SPLIT} if it means something else"
            known = ", ".join(manifest.SPLITS)
            raise Fault("unknown split", f"{column or SPLIT} is {named!r}, not one of {known}{fix}")
        return split

    def _captions(self, values: dict[str, Any]) -> list[Any]:
        """The captions of a row: of all columns that params name, else of the known ones, long ones first."""
        if self.columns.captions:
            names = [name for name in self._names["captions"] if values.get(name) is not None]
        else:
            names = [name for name in LONG if values.get(name)]
            if not names:
                there = [name for name in CAPTIONS if values.get(name) is not None]
                filled = [name for name in there if values[name] not in ("", [])]
                if len(filled) > 1 and not self.ambiguous:
                    self.ambiguous = filled
                names = there[:1]
        self.used["caption"] |= dict.fromkeys(names)
        found = [one for name in names for one in _listed(values[name])]
        if not names:
            column, turns = value(values, TURNS)
            found = _listed(answer(turns))
            self.used["caption"] |= {column: None} if found else {}
        if not found:
            empty = "an empty list" if names else f"no field {' or '.join(self.columns.texts)}"
            raise Fault("no caption", empty)
        return found


def count_reasons(rejected: list[Rejected]) -> dict[str, int]:
    """How many rows were rejected for each reason, the most frequent first."""
    return dict(Counter(one.reason for one in rejected).most_common())


def _listed(value: Any) -> list[Any]:
    """One or more captions as a list; none for null."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _inside(folder: Path, name: Any, columns: Columns) -> str:
    """The path below the folder, normalised; symbolic links in it are the user's own and are followed."""
    if name is None or name == "":
        raise Fault("no picture named", f"no field {' or '.join(columns.images)}")
    if not isinstance(name, str) or "\0" in name or _storable(name) != name:
        raise Fault("no picture named", f"{name!r} is not a path"[:200])
    if URL.match(name):
        raise Fault("picture on the web", "download it first, for example with img2dataset")
    top = os.path.abspath(folder)
    # As Windows writes it; on Linux a name may hold a backslash, too.
    if "\\" in name and not os.path.lexists(os.path.join(top, name)):
        name = name.replace("\\", "/")
    path = os.path.relpath(os.path.join(top, os.path.expanduser(name)), top)
    if path.split(os.sep)[0] == os.pardir:
        fix = "set data.images to the folder that holds them all, / for any"
        raise Fault("path leaves the folder", f"pictures lie below {folder}; {fix}")
    return path


def _text(caption: Any) -> str:
    """The caption as the manifest holds it: cleaned."""
    if not isinstance(caption, str):
        raise Fault("caption is not text", f"found {caption!r}"[:80])
    if _storable(caption) != caption:
        raise Fault("caption is not text", "half a surrogate pair, which no text holds")
    text = clean(caption)
    if not text:
        raise Fault("empty caption", "nothing but blanks" if caption else "no character")
    return text


def _own(cleaned: str) -> str:
    """A user's cleaned caption without tags of HTML; a Fault where it says nothing."""
    text = strip_tags(cleaned)
    if not any(map(str.isalpha, text)):
        raise Fault("caption without a letter", f"found {cleaned!r}"[:80])
    return text


def _id(values: dict[str, Any], path: str) -> str:
    name = values.get("id")
    if name is None or name == "":
        return path
    if isinstance(name, bool) or not isinstance(name, int | str) or _storable(str(name)) != str(name):
        raise Fault("id is not text", f"found {name!r}"[:80])
    return str(name)


def _storable(text: str) -> str:
    """The text with what UTF-8 cannot hold (lone surrogates, possible in JSON) made visible."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
