"""Pictures inside other files, read where they are: members of a tar, rows of an Arrow or Parquet file.

A manifest names such a picture by a reference, <file>#<name>@<place>. In a tar or Arrow file the place is
<offset>+<size>, in bytes, so that a picture costs one read. Parquet is compressed: there the name is the
row's number, from 0, the place its column, and the row group around it is decoded and kept for the next.
"""

import io
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa

# Uncompressed bytes of a row group's pictures: a process keeps two.
MAX_GROUP = 256 << 20
_REFERENCE = re.compile(
    r"(?P<file>.+\.(?:tar|arrow))#[^/]*@(?P<offset>\d+)\+(?P<size>\d+)"
    r"|(?P<table>.+\.parquet)#(?P<row>\d+)@(?P<column>[^/]+)",
    re.IGNORECASE | re.DOTALL,
)
# Threads that read ahead ask for the same row group at once: it is decoded once.
_DECODING = Lock()


def in_bytes(file: str, name: str, offset: int, size: int) -> str:
    """The reference to a picture in a tar or Arrow file; `name` is shown to people."""
    return f"{file}#{re.sub('[/@#]', '_', name)}@{offset}+{size}"


def in_column(file: str, row: str, column: str) -> str:
    """The reference to a picture in a Parquet file; `row` in as many digits as others, to be sorted by."""
    return f"{file}#{row}@{column}"


def file_of(image: Path | str) -> str:
    """The file that holds a picture: the one that its reference names, or the picture's own."""
    found = _parts(image)
    return (found["file"] or found["table"]) if found else str(image)


def opened(image: Path | str) -> BinaryIO:
    """A picture's bytes as a file; raises OSError as `open` does, and pyarrow's errors for damaged files."""
    found = _parts(image)
    if not found:
        return open(image, "rb")
    if found["file"]:
        with open(found["file"], "rb") as file:
            file.seek(int(found["offset"]))
            return io.BytesIO(file.read(int(found["size"])))
    stat = os.stat(found["table"])
    known = (found["table"], stat.st_size, stat.st_mtime_ns)
    row, starts = int(found["row"]), _starts(*known)
    group = bisect_right(starts, row) - 1
    with _DECODING:
        column = _column(*known, found["column"], group)
    content = column[row - starts[group]].as_py()
    # A picture is a struct {bytes, path}, as Hugging Face writes it, or bytes alone.
    return io.BytesIO((content.get("bytes") if isinstance(content, dict) else content) or b"")


def _parts(image: Path | str) -> re.Match[str] | None:
    name = str(image)
    return _REFERENCE.fullmatch(name) if "#" in name else None


@lru_cache(maxsize=256)
def _starts(file: str, size: int, mtime_ns: int) -> Sequence[int]:
    """The first row of each row group."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        footer = table.metadata
        counts = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        return list(accumulate(counts, initial=0))[:-1]


@lru_cache(maxsize=2)
def _column(file: str, size: int, mtime_ns: int, column: str, group: int) -> "pa.ChunkedArray":
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        return table.read_row_group(group, columns=[column], use_threads=False).column(0)
