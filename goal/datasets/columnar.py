"""Rows of Parquet and Arrow files: plain columns, and pictures inside, which stay where they are.

A picture is a struct {bytes, path}, as Hugging Face's `datasets` writes it, or bytes alone, as img2dataset
does. Where the bytes are null the path names a file.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from goal.datasets import inside
from goal.datasets.captions_file import Line
from goal.datasets.columns import IMAGES, Columns, plain, shown
from goal.errors import UserError

ROWS = 1024
# At most so many where pictures are read too.
FEW_ROWS = 32
BYTES, PATH = "bytes", "path"


def names(file: Path) -> list[str]:
    """The columns of a file; raises UserError where it cannot be read."""
    return _parquet_schema(file).names if _is_parquet(file) else _arrow_schema(file).names


def read(file: Path, place: str, columns: Columns) -> Iterator[Line]:
    """The rows of a file, whose path below the pictures' folder is `place`.

    Raises UserError where the file is damaged, has two columns of pictures of which params name none, or
    row groups too large to be decoded for one picture.
    """
    try:
        yield from (_parquet if _is_parquet(file) else _arrow)(file, place, columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _parquet(file: Path, place: str, columns: Columns) -> Iterator[Line]:
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        picture = _picture(file, schema, columns)
        wanted, leaf, size = _plain(schema, columns), "", ROWS
        if picture:
            struct = pa.types.is_struct(schema.field(picture).type)
            leaf = f"{picture}.{BYTES}" if struct else picture
            missing = _nulls(file, table.metadata, leaf)
            wanted += [f"{picture}.{PATH}"] if struct and _has(schema.field(picture), PATH) else []
            if missing is None or 0 < missing < table.metadata.num_rows:
                wanted, size = [*wanted, leaf], FEW_ROWS
        number, digits = 0, len(str(table.metadata.num_rows))
        for batch in table.iter_batches(size, columns=wanted, use_threads=False):
            for values in batch.to_pylist():
                if picture:
                    known = values.pop(picture, None)
                    content = known.get(BYTES) if isinstance(known, dict) else known
                    if content is not None or missing == 0:
                        # Manifests are in the order of their ids: in this one a row group is decoded once.
                        row = f"{number:0{digits}}"
                        values[columns.images[0]] = inside.in_column(place, row, leaf)
                        values["id"] = f"{place}#{row}"
                    else:
                        values[columns.images[0]] = known.get(PATH) if isinstance(known, dict) else None
                yield Line(f"{place}#{number}", values)
                number += 1


def _arrow(file: Path, place: str, columns: Columns) -> Iterator[Line]:
    with pa.memory_map(str(file)) as source:
        reader, start = _arrow_reader(source), source.size() and _address(source)
        picture, wanted = _picture(file, reader.schema, columns), _plain(reader.schema, columns)
        number = 0
        for batch in _batches(reader):
            rows = batch.select(wanted).to_pylist()
            if picture:
                pictures = _in_memory(file, batch.column(picture), start, source.size())
                for row, (values, found) in enumerate(zip(rows, pictures, strict=True), number):
                    if isinstance(found, tuple):
                        values.setdefault("id", f"{place}#{row:09}")
                        found = inside.in_bytes(place, str(row), *found)
                    values[columns.images[0]] = found
            for values in rows:
                yield Line(f"{place}#{number}", values)
                number += 1


def _in_memory(file: Path, column: pa.Array, start: int, size: int) -> Iterator[tuple[int, int] | str | None]:
    """Of each row's picture offset and size in the file, which begins at `start` in memory; or its path."""
    struct = pa.types.is_struct(column.type)
    content = column.field(BYTES) if struct else column
    paths = column.field(PATH).to_pylist() if struct and _has(column, PATH) else [None] * len(column)
    _, borders, data = content.buffers()
    kind = np.int64 if pa.types.is_large_binary(content.type) else np.int32
    ends = np.frombuffer(borders, kind)[content.offset : content.offset + len(content) + 1]
    first = data.address - start if data else 0
    if data and not 0 <= first <= size - data.size:
        raise UserError(f"{file}: its buffers are compressed; write it without compression, or as Parquet")
    valid = zip(column.is_valid().to_pylist(), content.is_valid().to_pylist(), strict=True)
    for number, (row, filled) in enumerate(valid):
        if row and filled:
            yield first + int(ends[number]), int(ends[number + 1] - ends[number])
        else:
            yield paths[number]


def _picture(file: Path, schema: pa.Schema, columns: Columns) -> str:
    """The column with pictures inside, "" where there is none."""
    found = [field.name for field in schema if _holds_bytes(field)]
    if columns.image:
        return next((name for name in found if plain(name) == plain(columns.image)), "")
    usual = [name for name in found if plain(name) in IMAGES]
    if len(found) > 1 and len(usual) != 1:
        raise UserError(
            f"{file}: pictures in the columns {shown(found)}; set data.folder.image_column to one"
        )
    return (usual or found or [""])[0]


def _plain(schema: pa.Schema, columns: Columns) -> list[str]:
    """The columns to read that hold no pictures; one at least, so that rows are counted."""
    plain_columns = [field.name for field in schema if not _holds_bytes(field)]
    return columns.wanted(plain_columns) or plain_columns[:1]


def _holds_bytes(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        return _has(field, BYTES)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _has(field: pa.Field | pa.Array, name: str) -> bool:
    return field.type.get_field_index(name) >= 0


def _nulls(file: Path, footer: pq.FileMetaData, leaf: str) -> int | None:
    """How many rows have no picture inside; None where the file does not say."""
    number = next(n for n in range(footer.num_columns) if footer.schema.column(n).path == leaf)
    missing: int | None = 0
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(number)
        if chunk.total_uncompressed_size > inside.MAX_GROUP:
            raise UserError(
                f"{file}: a row group has {chunk.total_uncompressed_size >> 20:,} MiB of pictures, which each"
                f" of them would need decoded (at most {inside.MAX_GROUP >> 20}); write it with smaller "
                f'ones: python -c "import pyarrow.parquet as p; f = p.ParquetFile({str(file)!r}); w = '
                "p.ParquetWriter('smaller.parquet', f.schema_arrow); [w.write_batch(b) for b in "
                'f.iter_batches(100)]; w.close()"'
            )
        known = (
            chunk.statistics.null_count if chunk.is_stats_set and chunk.statistics.has_null_count else None
        )
        missing = None if missing is None or known is None else missing + known
    return missing


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _arrow_schema(file: Path) -> pa.Schema:
    try:
        with pa.memory_map(str(file)) as source:
            return _arrow_reader(source).schema
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error


def _arrow_reader(
    source: pa.MemoryMappedFile,
) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
    # Arrow has two forms: `datasets` writes a stream, others a file.
    opened = pa.ipc.open_file if source.read(6) == b"ARROW1" else pa.ipc.open_stream
    source.seek(0)
    return opened(source)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _address(source: pa.MemoryMappedFile) -> int:
    """Where the file begins in memory."""
    place = source.tell()
    source.seek(0)
    address = source.read_buffer(1).address
    source.seek(place)
    return address


def _damaged(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{file}: cannot be read{', it is empty' * (not os.path.getsize(file))}: {reason}")
