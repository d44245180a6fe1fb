"""Which of a user's own pictures are trained on: shares by id and seed, or a column."""

from pathlib import Path

import pytest

from goal.datasets import manifest
from goal.datasets.folder import share
from goal.errors import UserError
from tests.datasets.conftest import Build
from tests.datasets.own import rejected, rows, run, write


def test_shares_depend_on_id_and_seed_alone(build: Build, own: Path) -> None:
    settings = build(folder={"val_share": 0.2, "test_share": 0.3}).data.folder
    drawn = [share(f"picture {number}", 0, settings) for number in range(5000)]
    for split, wanted in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
        assert drawn.count(split) / 5000 == pytest.approx(wanted, abs=0.02)
    assert drawn != [share(f"picture {number}", 1, settings) for number in range(5000)]


def test_new_rows_move_no_old_one(build: Build, own: Path) -> None:
    def splits() -> dict[str, str]:
        found = {split: manifest.read(Path(f"data/own/{split}.parquet")) for split in manifest.SPLITS}
        return {row.id: split for split, rows in found.items() for row in rows}

    write(own, rows(7))
    run(build, own)
    before = splits()
    write(own, rows()[::-1])
    run(build, own)
    assert before.items() <= splits().items()


def test_a_column_splits(build: Build, own: Path) -> None:
    parts = ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    write(own, [row | {"part": part} for row, part in zip(rows(), parts, strict=True)], ".csv")
    run(build, own, folder={"split_column": "part"})
    counts = [len(manifest.read(Path(f"data/own/{split}.parquet"))) for split in manifest.SPLITS]
    assert counts == [5, 2, 3]


def test_faults_of_the_split_column(build: Build, own: Path) -> None:
    good = [row | {"part": "test" if number else "train"} for number, row in enumerate(rows(8))]
    bad = [
        {"image": "images/8.png", "caption": "x", "part": "dev"},
        {"image": "images/9.png", "caption": "x"},
        {"image": "images/0.png", "caption": "other", "part": "test"},
    ]
    write(own, good + bad)
    run(build, own, folder={"split_column": "part"})
    assert [row["reason"] for row in rejected()] == [
        "unknown split",
        "unknown split",
        "picture in two splits",
    ]
    assert "test here, train in captions.jsonl:1" in rejected()[2]["detail"]
    with pytest.raises(
        UserError, match="no row has data.folder.split_column 'fold'; fields found: caption, image"
    ):
        run(build, own, folder={"split_column": "fold"})
    write(own, good[1:])
    with pytest.raises(UserError, match="7 usable pictures and none for train: mark some with train in part"):
        run(build, own, folder={"split_column": "part"})


def test_too_few_pictures_for_the_shares(build: Build, own: Path) -> None:
    write(own, rows())
    with pytest.raises(
        UserError, match="10 usable pictures and none for test: add pictures, or change data.folder"
    ):
        run(build, own, folder={"test_share": 0.0})
