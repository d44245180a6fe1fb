"""The manifest: what is written is read, the same bytes every time, and faults are one line."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError

ROWS = [
    Row("b", "pictures/b.png", 20, 10, ("A sentence. Another.", "שלום 🌻"), "folder"),
    Row("a", "pictures/a.png", 1, 1, ("one",), "folder"),
]


def test_round_trip_sorted_by_id(tmp_path: Path) -> None:
    manifest.write(ROWS, tmp_path / "x.parquet")
    assert manifest.read(tmp_path / "x.parquet") == sorted(ROWS, key=lambda row: row.id)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_no_rows(tmp_path: Path) -> None:
    manifest.write([], tmp_path / "x.parquet")
    assert manifest.read(tmp_path / "x.parquet") == []


def test_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    manifest.write(ROWS, tmp_path / "x.parquet")
    manifest.write(ROWS[::-1], tmp_path / "y.parquet")
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_an_id_twice_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    manifest.write(ROWS, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="id 'a' comes twice"):
        manifest.write([*ROWS, ROWS[1]], tmp_path / "x.parquet")
    assert len(manifest.read(tmp_path / "x.parquet")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not found; `dvc repro data` writes it"), (b"PAR1 and no more", "cannot be read: ")],
)
def test_unreadable_files_are_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        manifest.read(tmp_path / "x.parquet")
    assert str(error.value).startswith(str(tmp_path / "x.parquet"))
    assert "\n" not in str(error.value)


def test_a_table_of_something_else_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "image": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column width, height, captions, source"):
        manifest.read(tmp_path / "x.parquet")
