"""Rows of a captions file: JSON Lines, CSV with a header, or one JSON list (the GOAL release's form)."""

import csv
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goal.errors import UserError

log = logging.getLogger(__name__)

NAME = "captions"
# Tried in this order where a CSV's header has no comma.
DELIMITERS = (";", "\t", "|")
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Line:
    """One row as read; `row` is its place for messages, `fault` says why it could not be read, if so."""

    row: str
    values: dict[str, Any]
    fault: str = ""


def find(path: Path) -> Path:
    """The captions file: `path` itself, or the one captions.jsonl, .csv or .json in the folder `path`.

    Upper and lower case in its name are the same. Raises UserError where there is none, or more than one.
    """
    names = [f"{NAME}{suffix}" for suffix in READERS]
    found = [path]
    if path.is_dir():
        files = sorted(os.listdir(path))
        found = [path / file for name in names for file in files if file.lower() == name]
    if not found:
        fix = "set data.path to the folder that holds one, or to the file"
        raise UserError(f"{path}: no {' or '.join(names)} in it; {fix}")
    if len(found) > 1:
        both = f"both {found[0].name} and {found[1].name}"
        raise UserError(f"{path}: {both}; set data.path to the file to use")
    if not found[0].is_file():
        raise UserError(f"{path}: not found; set data.path to a folder of pictures with its captions file")
    if found[0].suffix.lower() not in READERS:
        raise UserError(f"{path}: a captions file ends in {', '.join(READERS)}")
    return found[0]


def read(file: Path) -> Iterator[Line]:
    """All rows of a captions file, the unreadable ones with their fault; blank lines are skipped.

    Raises UserError, naming the line, where the rest of the file cannot be understood either.
    """
    return READERS[file.suffix.lower()](file)


def read_jsonl(file: Path) -> Iterator[Line]:
    """The rows of a file of JSON Lines, whatever its name ends in, as `read` gives them."""
    with file.open("rb") as lines:
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


def _read_csv(file: Path) -> Iterator[Line]:
    text = _text(file)
    delimiter = _delimiter(text.partition("\n")[0])
    if delimiter != ",":
        log.info("%s: read with %r between the cells, as in its header", file, delimiter)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        names = rows.fieldnames or []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{file}:1: column {twice[0]!r} comes twice; rename one")
        for values in rows:
            row = f"{file.name}:{rows.line_num}"
            if None in values:
                more = f"{len(values[None])} cells more than the header has"
                yield Line(row, {}, f"{more}; quote cells that hold {delimiter!r}")
            else:
                yield Line(row, {name: value for name, value in values.items() if value is not None})
    except csv.Error as error:
        raise UserError(f"{file}:{rows.line_num}: not CSV: {error}; is a quote left open before?") from error


def _read_json(file: Path) -> Iterator[Line]:
    try:
        entries = json.loads(_text(file))
    except json.JSONDecodeError as error:
        hint = "; name a file with one object per line .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise UserError(f"{file}: not JSON that can be read: nested too deeply") from error
    if not isinstance(entries, list):
        raise UserError(f"{file}: expected a list of objects, found {_kind(entries)}")
    return (_line(f"{file.name}[{number}]", values) for number, values in enumerate(entries))


READERS = {".jsonl": read_jsonl, ".csv": _read_csv, ".json": _read_json}


def _delimiter(header: str) -> str:
    """What separates a CSV file's cells: a comma, unless its header would be one cell with another in it."""
    names = next(csv.reader([header]), [])
    return next((one for one in DELIMITERS if len(names) == 1 and one in header), ",")


def _line(row: str, values: Any) -> Line:
    if isinstance(values, dict):
        return Line(row, values)
    return Line(row, {}, f"expected an object with image and caption, found {_kind(values)}")


def _text(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
