"""Parts of a manifest that may not fit into memory: its length, some rows, a digest of its pictures."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from goal.datasets import inside, manifest
from goal.datasets.manifest import Row
from goal.runtime import files


def count(path: Path) -> int:
    """Rows of a manifest; raises UserError where it is missing or damaged."""
    with manifest.opened(path) as file:
        return file.metadata.num_rows


def rows(path: Path, start: int, stop: int) -> list[Row]:
    """Rows start..stop of a manifest, reading no more of it than the row groups that hold them."""
    taken, first = [], 0
    with manifest.opened(path) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if first < stop and start < first + size:
                table = file.read_row_group(group, columns=manifest.MANIFEST.names)
                low = max(start - first, 0)
                taken += manifest.rows(table.slice(low, min(stop - first, size) - low))
            first += size
    return taken


def named(path: Path, names: Collection[str]) -> list[Row]:
    """The rows of a manifest with these ids, in its order, reading one row group at a time."""
    wanted = pa.array(names, pa.string())
    with manifest.opened(path) as file:
        groups = (file.read_row_group(group, manifest.MANIFEST.names) for group in range(file.num_row_groups))
        return [row for table in groups for row in manifest.rows(table.filter(pc.is_in(table["id"], wanted)))]


def content(path: Path) -> str:
    """Digest of a manifest and of the pictures behind it (their sizes and times, not their bytes)."""
    known = hashlib.sha256(files.digest(path).encode())
    with manifest.opened(path) as file:
        for batch in file.iter_batches(columns=["image"]):
            for image in batch["image"].to_pylist():
                known.update(state(image).encode())
    return known.hexdigest()


def state(image: str) -> str:
    """Size and time of a picture's file, or the error number: another text once the file has changed."""
    try:
        stat = os.stat(inside.file_of(image))
    except OSError as error:
        return f"{error.errno}\n"
    return f"{stat.st_size} {stat.st_mtime_ns}\n"
