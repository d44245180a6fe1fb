"""A manifest that need not fit into memory: its length, some of its rows, and what its pictures are."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.runtime import files


def count(path: Path) -> int:
    """Rows of a manifest; raises UserError where it is missing or damaged."""
    return _parquet(path).metadata.num_rows


def rows(path: Path, start: int, stop: int) -> list[Row]:
    """Rows start..stop of a manifest, reading no more of it than the row groups that hold them."""
    file = _parquet(path)
    taken, first = [], 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if first < stop and start < first + size:
            table = file.read_row_group(group, columns=manifest.MANIFEST.names)
            low = max(start - first, 0)
            taken += _rows(table.slice(low, min(stop - first, size) - low))
        first += size
    return taken


def named(path: Path, names: Collection[str]) -> list[Row]:
    """The rows of a manifest with these ids, in its order, reading one row group at a time."""
    file, wanted = _parquet(path), pa.array(names, pa.string())
    tables = (file.read_row_group(group, manifest.MANIFEST.names) for group in range(file.num_row_groups))
    return [row for table in tables for row in _rows(table.filter(pc.is_in(table["id"], wanted)))]


def content(path: Path) -> str:
    """Digest of a manifest and of the pictures behind it (their sizes and times, not their bytes)."""
    known = hashlib.sha256(files.digest(path).encode())
    for batch in _parquet(path).iter_batches(columns=["image"]):
        for image in batch["image"].to_pylist():
            known.update(state(Path(image)).encode())
    return known.hexdigest()


def state(image: Path) -> str:
    """Size and time of a picture's file, or why it cannot be seen: what differs once the file was changed."""
    try:
        stat = image.stat()
    except OSError as error:
        return f"{error.errno}\n"
    return f"{stat.st_size} {stat.st_mtime_ns}\n"


def _rows(table: pa.Table) -> list[Row]:
    return [Row(**{**row, "captions": tuple(row["captions"])}) for row in table.to_pylist()]


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; `dvc repro data` writes it") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
