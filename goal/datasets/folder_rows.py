"""Rows of a captions file or a published set, gathered by picture, or listed with what is wrong.

A row names a picture (field image, filename, file_name or path, relative to the folder of pictures) and its
caption or captions (field caption, captions or text; the first that is there), perhaps an `id` and a split.
Rows of the same picture are joined. Captions are cleaned here, once for all stages.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.cleaning import clean
from goal.datasets import manifest
from goal.datasets.captions_file import Line
from goal.datasets.images import ImageError, probe_all
from goal.datasets.manifest import Rejected, Row

if TYPE_CHECKING:
    from goal.config import Data

IMAGE_FIELDS = ("image", "filename", "file_name", "path")
CAPTION_FIELDS = ("caption", "captions", "text")


class Fault(Exception):
    """Why a row, or one of its captions, is not used: a reason that can be counted, and what exactly."""


@dataclass
class Picture:
    """What the rows say of one picture: each caption with the row it came from; split "": by the shares.

    cleaned: how many of its captions the cleaning changed.
    """

    row: str
    id: str
    split: str
    captions: dict[str, str] = field(default_factory=dict)
    cleaned: int = 0


class Gathering:
    """The pictures below a folder, row by row, and the rows that cannot be used.

    cleaned: captions that the cleaning changed, of the pictures that `probe` found usable.
    """

    def __init__(self, folder: Path, split_column: str) -> None:
        self.folder = folder
        self.split_column = split_column
        self.pictures: dict[str, Picture] = {}
        self.rejected: list[Rejected] = []
        self.rows = 0
        self.cleaned = 0
        self.fields: set[str] = set()
        self._ids: dict[str, str] = {}

    def add(self, line: Line) -> None:
        """Take a row in, or list it as rejected."""
        self.rows += 1
        self.fields |= line.values.keys()
        name = _first(line.values, IMAGE_FIELDS)
        try:
            if line.fault:
                raise Fault("unreadable row", line.fault)
            path = _inside(self.folder, name)
            captions = _captions(line.values)
            picture = self._picture(line, path)
        except Fault as fault:
            self.reject(line.row, line.values.get("id"), name, *fault.args)
            return
        for caption in captions:
            try:
                text = _text(caption)
                if text in picture.captions:
                    raise Fault("same picture and caption again", f"first in {picture.captions[text]}")
            except Fault as fault:
                self.reject(line.row, picture.id, path, *fault.args)
            else:
                picture.captions[text] = line.row
                picture.cleaned += text != caption.strip()

    def probe(self, data: "Data") -> list[tuple[Row, str]]:
        """The pictures that have captions and decode, each with its split; others are rejected."""
        named = {path: one for path, one in self.pictures.items() if one.captions}
        files = [(self.folder / path).as_posix() for path in named]
        found = probe_all(files, data.max_megapixels, self.folder.name, data.digest)
        rows = []
        for (path, one), file, probed in zip(named.items(), files, found, strict=True):
            if isinstance(probed, ImageError):
                self.reject(one.row, one.id, path, probed.reason, probed.detail)
            else:
                self.cleaned += one.cleaned
                captions = tuple(one.captions)
                row = Row(one.id, file, *probed.size, captions, data.source, probed.digest)
                rows.append((row, one.split))
        return rows

    def reject(self, row: str, name: Any, image: Any, reason: str, detail: str) -> None:
        """List a row as not used."""
        shown = ("" if value is None else _storable(str(value)) for value in (name, image))
        self.rejected.append(Rejected(row, *shown, reason, _storable(detail)))

    def _picture(self, line: Line, path: str) -> Picture:
        split = self._split(line.values)
        known = self.pictures.get(path)
        if known is None:
            name = _id(line.values, path)
            other = self._ids.setdefault(name, path)
            if other != path:
                raise Fault("id of another picture", f"id {name!r} is that of {other}")
            known = self.pictures[path] = Picture(line.row, name, split)
        elif known.split != split:
            raise Fault("picture in two splits", f"{split} here, {known.split} in {known.row}")
        return known

    def _split(self, values: dict[str, Any]) -> str:
        split = values.get(self.split_column) if self.split_column else ""
        if self.split_column and split not in manifest.SPLITS:
            known = ", ".join(manifest.SPLITS)
            raise Fault("unknown split", f"{self.split_column} is {split!r}, not one of {known}")
        return split


def _first(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _inside(folder: Path, name: Any) -> str:
    """The path below the folder, normalised; symbolic links in it are the user's own and are followed."""
    if name is None or name == "":
        raise Fault("no picture named", f"no field {' or '.join(IMAGE_FIELDS)}")
    if not isinstance(name, str) or "\0" in name or _storable(name) != name:
        raise Fault("no picture named", f"{name!r} is not a path")
    top = os.path.abspath(folder)
    path = os.path.relpath(os.path.join(top, name), top)
    if path.split(os.sep)[0] == os.pardir:
        raise Fault("path leaves the folder", f"pictures lie in the folder of the captions file, {folder}")
    return path


def _captions(values: dict[str, Any]) -> list[Any]:
    captions = _first(values, CAPTION_FIELDS)
    if captions is None or captions == []:
        none = "an empty list" if captions == [] else f"no field {' or '.join(CAPTION_FIELDS)}"
        raise Fault("no caption", none)
    return captions if isinstance(captions, list) else [captions]


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
