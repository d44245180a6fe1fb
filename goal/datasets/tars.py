"""Rows of WebDataset tars, as img2dataset writes them, and of the same files in a folder.

A sample is the files that share a key, the name up to its first dot: <key>.jpg, <key>.txt, <key>.json.
"""

import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from goal.datasets import inside
from goal.datasets.captions_file import BLOCK, Line
from goal.datasets.unpack import DAMAGE

PICTURES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm", "jp2")
# Captions as plain text; kohya's trainers write the second.
TEXTS = ("txt", "caption")
# Longer ones are no caption.
MAX_TEXT = 1 << 24  # bytes
# What img2dataset writes beside a tar: how many samples it holds, and their metadata once more.
STATS = "_stats.json"


def read(file: Path, shown: str) -> Iterator[Line]:
    """The samples of a tar, whose path below the pictures' folder is `shown`; pictures stay inside it.

    Where the tar is damaged the samples behind that are lost: one faulty line each, as far as img2dataset's
    statistics tell how many there are.
    """
    count, fault = 0, ""
    key, members, leaves = "", {}, False
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                if str(path.with_name(stem or path.name)) != key:
                    if members:
                        count += 1
                        yield _sample(file.name, shown, key, members, leaves)
                    key, members, leaves = str(path.with_name(stem or path.name)), {}, False
                leaves |= path.is_absolute() or ".." in path.parts
                ending = ending.lower()
                if ending in PICTURES:
                    place = inside.in_bytes(shown, path.name, member.offset_data, member.size)
                    members.setdefault("image", place)
                elif ending in (*TEXTS, "json") and member.size <= MAX_TEXT:
                    members[ending] = tar.extractfile(member).read()
                # Else a shard of any size would keep a record of each of its members.
                tar.members = []
            # A damaged header passes for the tar's end.
            while rest := tar.fileobj.read(BLOCK):
                if rest.count(0) < len(rest):
                    raise tarfile.ReadError(f"something follows its end at {tar.offset:,} bytes")
    except (*DAMAGE, OSError) as error:
        fault = " ".join(str(error).split()) or type(error).__name__
        members = {}
    if members:
        count += 1
        yield _sample(file.name, shown, key, members, leaves)
    if fault:
        for number in range(count, max(_expected(file), count + 1)):
            yield Line(f"{file.name}:{number}", {}, f"damaged tar after {count:,} samples: {fault}")


def beside(root: Path, pictures: Iterable[str]) -> Iterator[Line]:
    """Pictures below `root` with text or JSON of the same name beside them."""
    for picture in pictures:
        stem = os.path.splitext(os.path.join(root, picture))[0]
        members: dict[str, Any] = {"image": picture}
        for ending in (*TEXTS, "json"):
            try:
                if os.path.getsize(f"{stem}.{ending}") <= MAX_TEXT:
                    members[ending] = Path(f"{stem}.{ending}").read_bytes()
            except OSError:
                continue
        yield _values(picture, members)


def _sample(name: str, shown: str, key: str, members: dict[str, Any], leaves: bool) -> Line:
    row = f"{name}:{key}"
    if leaves:
        return Line(row, {}, "a member's path leads out of the folder; the tar is not to be trusted")
    line = _values(row, members)
    line.values.setdefault("id", f"{shown}#{key}")
    return line


def _values(row: str, members: dict[str, Any]) -> Line:
    """The fields of a sample: those of its JSON, its text as txt (and caption, if JSON has none), image."""
    try:
        values = json.loads(members.get("json", b"{}"))
        texts = [members[ending].decode("utf-8-sig").strip() for ending in TEXTS if ending in members]
    except UnicodeDecodeError as error:
        return Line(row, {}, f"not UTF-8: {error.reason}")
    except (ValueError, RecursionError) as error:
        return Line(row, {}, f"not JSON: {error}")
    # LLaVA and others put a list of turns there; a sample is one object.
    values = values if isinstance(values, dict) else {}
    values = {name: value for name, value in values.items() if name not in ("image", "id")}
    if texts:
        values["txt"] = texts[0]
        values.setdefault("caption", texts[0])
    return Line(row, values | ({"image": members["image"]} if "image" in members else {}))


def _expected(file: Path) -> int:
    try:
        found = json.loads(file.with_name(file.stem + STATS).read_bytes())
        return int(found["successes"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0
