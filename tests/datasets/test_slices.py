"""Parts of a manifest: the same rows as reading it whole, and a digest that sees a changed picture."""

import os

import pytest

from goal.datasets import manifest, slices
from goal.datasets.manifest import Row
from goal.errors import UserError


@pytest.fixture
def path(tmp_path, monkeypatch):
    # Row groups of 5: slices begin and end inside them and at their borders.
    monkeypatch.setattr(manifest, "ROW_GROUP", 5)
    for number in range(17):
        (tmp_path / f"{number}.png").write_bytes(b"picture")
    rows = [
        Row(f"{number:03d}", str(tmp_path / f"{number}.png"), 9, 8, (f"Caption {number}.", ""), "x")
        for number in range(17)
    ]
    manifest.write(rows, tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def test_slices_are_the_rows_of_the_whole(path):
    everything = manifest.read(path)
    assert slices.count(path) == 17
    for start in range(18):
        for stop in range(start, 18):
            assert slices.rows(path, start, stop) == everything[start:stop]
    chosen = [everything[place] for place in (0, 4, 5, 16)]
    assert slices.named(path, [row.id for row in reversed(chosen)] + ["absent"]) == chosen
    assert slices.named(path, []) == []


def test_the_content_changes_with_a_picture_or_the_table(path, tmp_path):
    before = slices.content(path)
    assert slices.content(path) == before
    (tmp_path / "3.png").write_bytes(b"another picture")
    changed = slices.content(path)
    (tmp_path / "3.png").unlink()
    gone = slices.content(path)
    manifest.write(manifest.read(path)[:-1], path)
    assert len({before, changed, gone, slices.content(path)}) == 4


def test_a_touched_picture_counts_as_changed(path, tmp_path):
    before = slices.content(path)
    os.utime(tmp_path / "3.png", ns=(1, 1))
    assert slices.content(path) != before


def test_a_damaged_manifest_is_one_line(path):
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read: "):
        slices.count(path)
