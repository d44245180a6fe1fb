"""Tables of a data set: the manifest (one row per picture) and its companions, byte-identical every run."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from goal.errors import UserError
from goal.runtime.files import atomic

if TYPE_CHECKING:
    from goal.config import Params

SPLITS = ("train", "val", "test")
ROW_GROUP = 4096

_BOX = [(side, pa.float32()) for side in ("x1", "y1", "x2", "y2")]

# id: unique in the file; image: path, relative to the project's root or absolute; width, height: image frame;
# captions: cleaned (goal.cleaning), so that character offsets in them hold in what CLIP reads; digest: of the
# picture's file, so that all that depends on the manifest depends on what the pictures show.
MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("source", pa.string()),
        ("digest", pa.string()),
    ]
)
# A picture that equals test picture `twin_of` but for one attribute.
TWINS = pa.schema([*MANIFEST, ("twin_of", pa.string()), ("attribute", pa.string())])
# The true box (image frame) of the sentence caption[start:end].
TRUTH = pa.schema(
    [("id", pa.string()), ("caption", pa.int32()), ("start", pa.int32()), ("end", pa.int32()), *_BOX]
)
# A crop of test picture `of` (box in the image frame) and the sentence that describes it.
JOINT = pa.schema(
    [("id", pa.string()), ("of", pa.string()), ("image", pa.string()), *_BOX, ("caption", pa.string())]
)
# What is seen of a test picture without its details.
COLOURS = pa.schema([("id", pa.string()), ("background", pa.string()), ("colours", pa.list_(pa.string()))])
# A box that came with a picture (image frame) and what it shows.
BOXES = pa.schema([("id", pa.string()), *_BOX, ("phrase", pa.string())])
# row: where it was read; reason: one of few, to be counted; detail: what exactly.
REJECTED = pa.schema([(name, pa.string()) for name in ("row", "id", "image", "reason", "detail")])


@dataclass(frozen=True)
class Row:
    """One picture with its captions; `image` is a path, width and height are in the image frame.

    digest: of the picture's file (images.digest_of); "" where the picture was not probed.
    """

    id: str
    image: str
    width: int
    height: int
    captions: tuple[str, ...]
    source: str
    digest: str = ""


@dataclass(frozen=True)
class Rejected:
    """A row of the source that cannot be used."""

    row: str
    id: str
    image: str
    reason: str
    detail: str

    def __str__(self) -> str:
        """One line, of what is known."""
        return ": ".join(filter(None, (self.row, self.image, self.reason, self.detail)))


@contextmanager
def opened(path: Path, stage: str = "data") -> Iterator[pq.ParquetFile]:
    """A Parquet file that `stage` wrote; raises UserError where it is missing or damaged."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; `dvc repro {stage}` writes it") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def read(path: Path) -> list[Row]:
    """The rows of a manifest, sorted by id; raises UserError where the file is missing or not a manifest."""
    return rows(read_table(path, MANIFEST))


def rows(found: pa.Table) -> list[Row]:
    """The rows of a table with a manifest's columns."""
    return [Row(**{**row, "captions": tuple(row["captions"])}) for row in found.to_pylist()]


def write(rows: Iterable[Row], path: Path) -> None:
    """Write a manifest, sorted by id; raises UserError for an id that comes twice."""
    write_table(table(rows, MANIFEST), path)


def read_table(path: Path, schema: pa.Schema, stage: str = "data") -> pa.Table:
    """The columns of `schema` from a Parquet file that `stage` wrote.

    Raises UserError where the file or a column is missing.
    """
    with opened(path, stage) as file:
        found = file.read()
    missing = [name for name in schema.names if name not in found.column_names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; `dvc repro --force {stage}` writes it anew")
    return found.select(schema.names).cast(schema)


def table(rows: Iterable[Row] | Iterable[dict[str, object]], schema: pa.Schema) -> pa.Table:
    """Rows (dataclasses or mappings) as a table, sorted by their first column where that is `id`."""
    values = [row if isinstance(row, dict) else vars(row) for row in rows]
    if schema.names[0] == "id":
        values.sort(key=lambda row: row["id"])
    return pa.Table.from_pylist(values, schema)


def write_table(rows: pa.Table, path: Path) -> None:
    """Write Parquet atomically and reproducibly: a manifest's ids must be unique, or UserError."""
    if set(MANIFEST.names) <= set(rows.column_names):
        repeated = sorted(name for name, count in Counter(rows["id"].to_pylist()).items() if count > 1)
        if repeated:
            raise UserError(f"{path}: id {repeated[0]!r} comes twice; every picture needs its own")
    with atomic(path) as draft:
        pq.write_table(rows, draft, row_group_size=ROW_GROUP, compression="zstd")


@dataclass(frozen=True)
class Collected:
    """What a source found: rows by split, further tables by file name, rejected rows.

    cleaned, tagged: how many of the captions the cleaning changed, and how many had tags of HTML.
    first_alike: each id's first picture that shows the same, by id, if the source looked for near copies.
    """

    splits: dict[str, list[Row]]
    tables: dict[str, pa.Table] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    cleaned: int = 0
    tagged: int = 0
    first_alike: dict[str, str] = field(default_factory=dict)


def by_split(rows: Iterable[tuple[Row, str]]) -> dict[str, list[Row]]:
    """Rows with their split, sorted into SPLITS."""
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row, split in rows:
        splits[split].append(row)
    return splits


# Reads params; pictures that it makes go below the folder, which becomes data/<name>/, and rows name them by
# paths.data_dir(name).
Source = Callable[["Params", Path], Collected]
