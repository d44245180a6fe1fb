"""Rows of a text file: JSON Lines, JSON, or a table with a header (CSV with any separator, Excel).

Files may be in gzip. They are read as a stream, but for COCO's form of JSON and for Excel.
"""

import codecs
import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from goal.datasets.columns import plain
from goal.errors import UserError

log = logging.getLogger(__name__)

GZIP = ".gz"
# Looked for in a table's header, of equally many the first.
DELIMITERS = (",", ";", "\t", "|")
BLOCK = 1 << 20  # bytes or characters
# A row of JSON that is longer, in characters, is none: the file is broken.
LONGEST = 1 << 26
SPACE = re.compile(r"\s*")
# What a table that is not in UTF-8 is taken for: Windows' Latin-1.
OTHERWISE = "cp1252"
BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class Line(NamedTuple):
    """One row as read; `row` is its place for messages, `fault` says why it could not be read, if so."""

    row: str
    values: dict[str, Any]
    fault: str = ""


def kind(file: Path) -> str:
    """The ending by which a file is read, in lower case, gzip's left out; "" where none of READERS has it."""
    suffix = Path(file.stem).suffix if file.suffix.lower() == GZIP else file.suffix
    return suffix.lower() if suffix.lower() in READERS else ""


def read(file: Path, separator: str = "") -> Iterator[Line]:
    """All rows of a file, the unreadable ones with their fault; blank lines are skipped.

    separator: between the cells of a table; "": found in its header. Raises UserError, naming the line, where
    the rest of the file cannot be understood either.
    """
    try:
        yield from READERS[kind(file)](file, separator)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: not gzip, or cut off: {error}") from error


def read_jsonl(file: Path, separator: str = "") -> Iterator[Line]:
    """The rows of a file of JSON Lines, whatever its name ends in, as `read` gives them."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            row = f"{file.name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield _line(row, json.loads(text))
            except UnicodeDecodeError as error:
                yield Line(row, {}, f"not UTF-8: {error.reason} at byte {error.start} of the line")
            except (json.JSONDecodeError, RecursionError) as error:
                yield Line(row, {}, f"not JSON: {error}")


def json_list(file: Path) -> Iterator[Any]:
    """The entries of a JSON list, of which no more is held than a few.

    Raises UserError, naming the line, where it is not JSON in UTF-8, or no list.
    """
    decoder = json.JSONDecoder()
    with _opened(file) as binary:
        text = io.TextIOWrapper(binary, "utf-8-sig")
        waiting, place, line = "", 0, 1
        try:
            waiting = text.read(BLOCK)
            place = SPACE.match(waiting).end()
            if waiting[place : place + 1] != "[":
                found = _kind(json.loads(waiting + text.read()))
                raise UserError(f"{file}: expected a list of objects, found {found}")
            place += 1
            while True:
                try:
                    place = SPACE.match(waiting, place).end()
                    if waiting[place : place + 1] == "]":
                        break
                    entry, end = decoder.raw_decode(waiting, place)
                    end = SPACE.match(waiting, end).end()
                    if waiting[end : end + 1] not in (",", "]"):
                        raise json.JSONDecodeError("Expecting ',' or ']'", waiting, end)
                except json.JSONDecodeError:
                    more = text.read(BLOCK)
                    if not more or len(waiting) - place > LONGEST:
                        raise
                    line += waiting.count("\n", 0, place)
                    waiting, place = waiting[place:] + more, 0
                else:
                    yield entry
                    place = end + (waiting[end] == ",")
            place = SPACE.match(waiting, place + 1).end()
            if waiting[place:]:
                raise json.JSONDecodeError("Extra data", waiting, place)
        except json.JSONDecodeError as error:
            hint = "; name a file with one object per line .jsonl" if error.msg == "Extra data" else ""
            raise UserError(f"{file}:{line + error.lineno - 1}: not JSON: {error.msg}{hint}") from error
        except RecursionError as error:
            raise UserError(f"{file}: not JSON that can be read: nested too deeply") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def coco(file: Path) -> dict[str, Any] | None:
    """A JSON file in COCO's form, {"images": [...], "annotations": [...], ...}; None for any other file."""
    with _opened(file) as content:
        if not content.read(BLOCK).lstrip(codecs.BOM_UTF8 + b" \r\n\t").startswith(b"{"):
            return None
        content.seek(0)
        try:
            found = json.load(content)
        except (ValueError, RecursionError):
            return None  # json_list says what is wrong
    lists = (found.get("images"), found.get("annotations")) if isinstance(found, dict) else ()
    return found if lists and all(isinstance(one, list) for one in lists) else None


def coco_boxes(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The boxes of a file in COCO's form, by the id of their picture, with their caption or category."""
    names = {one.get("id"): one.get("name") for one in filter(_is_object, found.get("categories", []))}
    boxes = defaultdict(list)
    for one in filter(_is_object, found["annotations"]):
        if one.get("bbox") is not None:
            phrase = one.get("caption", names.get(one.get("category_id"), ""))
            boxes[str(one.get("image_id"))].append({"bbox": one["bbox"], "phrase": phrase})
    return dict(boxes)


def _read_json(file: Path, separator: str) -> Iterator[Line]:
    found = coco(file)
    if found is None:
        for number, values in enumerate(json_list(file)):
            yield _line(f"{file.name}[{number}]", values)
        return
    captions, boxes = defaultdict(list), coco_boxes(found)
    for one in filter(_is_object, found["annotations"]):
        # With a box it is the box's.
        if one.get("caption") is not None and one.get("bbox") is None:
            captions[str(one.get("image_id"))].append(one["caption"])
    for number, image in enumerate(found["images"]):
        row = f"{file.name}: images[{number}]"
        if _is_object(image) and isinstance(image.get("id"), int | str):
            name = str(image["id"])
            values = {"file_name": image.get("file_name"), "captions": captions[name], "image_id": name}
            yield Line(row, values | ({"regions": boxes[name]} if name in boxes else {}))
        else:
            yield Line(row, {}, "expected an object with id and file_name")


def _read_table(file: Path, separator: str) -> Iterator[Line]:
    encoding = _encoding(file)
    with _opened(file) as binary:
        # Windows' Latin-1 leaves five bytes without a meaning.
        errors = "replace" if encoding == OTHERWISE else "strict"
        text = io.TextIOWrapper(binary, encoding, errors, newline="")
        header = text.readline()
        separator = separator or max(DELIMITERS, key=lambda one: len(_cells(header, one)))
        assumed = [f"read with {separator!r} between the cells, as in its header"] if separator != "," else []
        assumed += [f"read as {encoding}"] if encoding != "utf-8-sig" else []
        if assumed:
            log.info("%s: %s", file, ", ".join(assumed))
        names = _cells(header, separator)
        plain_names = [plain(name) for name in names]
        twice = sorted({name for name in names if plain_names.count(plain(name)) > 1})
        if twice:
            raise UserError(f"{file}:1: column {twice[0]!r} comes twice; rename one")
        if len(names) == 1:
            known = " ".join(map(repr, DELIMITERS))
            raise UserError(
                f"{file}: one column, {names[0]!r}: none of {known} is in its header; set "
                "data.folder.separator to what stands between the cells"
            )
        rows = csv.reader(text, strict=True, delimiter=separator)
        try:
            for cells in filter(None, rows):
                row = f"{file.name}:{rows.line_num + 1}"
                if len(cells) > len(names):
                    more = f"{len(cells) - len(names)} cells more than the header has"
                    yield Line(row, {}, f"{more}; quote cells that hold {separator!r}")
                else:
                    yield Line(row, dict(zip(names, cells, strict=False)))
        except csv.Error as error:
            raise UserError(
                f"{file}:{rows.line_num + 1}: not CSV: {error}; is a quote left open before?"
            ) from error


def _read_excel(file: Path, separator: str) -> Iterator[Line]:
    import pandas

    try:
        sheets = pandas.read_excel(file, sheet_name=None, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise UserError(f"{file}: `pip install openpyxl` reads it; or save it as CSV") from error
    except Exception as error:
        # openpyxl raises whatever comes up in a damaged file.
        raise UserError(f"{file}: cannot be read as Excel: {error}") from error
    filled = {name: sheet for name, sheet in sheets.items() if len(sheet)}
    if len(filled) != 1:
        found = ", ".join(filled) or "none"
        raise UserError(f"{file}: expected one sheet with rows, found {found}; save the one to use as CSV")
    for number, values in enumerate(next(iter(filled.values())).to_dict("records"), 2):
        yield Line(f"{file.name}:{number}", {str(name): value for name, value in values.items()})


READERS: dict[str, Callable[[Path, str], Iterator[Line]]] = {
    ".jsonl": read_jsonl,
    ".csv": _read_table,
    ".json": _read_json,
    ".tsv": _read_table,
    ".xlsx": _read_excel,
}


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    with gzip.open(file) if file.suffix.lower() == GZIP else file.open("rb") as content:
        yield content


def _encoding(file: Path) -> str:
    """The encoding of a table: by its mark, or UTF-8, or, where its bytes are not that, OTHERWISE."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _opened(file) as content:
        head = content.read(BLOCK)
        if head.startswith(BYTE_ORDER_MARKS):
            return "utf-16"
        # Every second byte of ASCII in UTF-16.
        for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head and head[offset:1024:2].count(0) > len(head[:1024]) / 4:
                return name
        try:
            while head:
                decoder.decode(head)
                head = content.read(BLOCK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return OTHERWISE
    return "utf-8-sig"


def _cells(header: str, separator: str) -> list[str]:
    return next(csv.reader([header], delimiter=separator), [])


def _line(row: str, values: Any) -> Line:
    if isinstance(values, dict):
        return Line(row, values)
    return Line(row, {}, f"expected an object with image and caption, found {_kind(values)}")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
