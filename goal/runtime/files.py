"""Files that are replaced whole or not at all: other processes may be reading them."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from goal.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; what was written there becomes `path` at the end.

    On any error the temporary file goes, and `path` stays as it was. Raises UserError where the disk refuses
    (full, read-only, no such folder); parallel writers of the same path do not meet.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # A read-only disk refuses that too, even where there is no such file.
        with suppress(OSError):
            draft.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file and the folders on its way; raises UserError where the disk refuses."""
    make_folder(path.parent)
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path, sort: bool = False) -> None:
    """Write a value as indented JSON, keys sorted if asked, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=sort, allow_nan=False) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder and those on its way; raises UserError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def check_space(folder: Path, need: int) -> None:
    """Raise UserError where fewer than `need` bytes are free on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: {need / 1e9:.1f} GB are still to come, {free / 1e9:.1f} GB are free; make room there"
        )


def replace_folder(draft: Path, target: Path) -> None:
    """Put the folder `draft` in the place of `target`, whose old content goes."""
    # A folder cannot be replaced atomically: the old one gets another name first.
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(draft, target)
    shutil.rmtree(old, ignore_errors=True)


def digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex; raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def expect(path: Path, known: str) -> None:
    """Raise UserError where a file has another digest than the one that is `known` of it."""
    if digest(path) != known:
        raise UserError(f"{path}: not the file that the command found there; copy it here and run again")


def unwritable(path: Path, error: OSError) -> UserError:
    """The one line for a disk that refuses to hold `path`."""
    # From the number: Arrow has its own text for the same reason.
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"{path}: cannot be written: {reason}; make room or fix it, and run again")
