"""Which of a user's own pictures are trained on: shares by id and seed, or a column."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        {"image": "images/8.png", "caption": "x", "part": "restval"},
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


def test_a_column_named_split_is_used_where_params_name_none(build: Build, own: Path, caplog) -> None:
    parts = ["train"] * 4 + ["validation", "dev", "valid", "test", " TEST ", "Train"]
    write(own, [row | {"split": part} for row, part in zip(rows(), parts, strict=True)], ".csv")
    with caplog.at_level("INFO"):
        run(build, own)
    splits = {
        split: {row.id for row in manifest.read(Path(f"data/own/{split}.parquet"))}
        for split in manifest.SPLITS
    }
    assert splits["val"] == {f"images/{number}.png" for number in (4, 5, 6)}
    assert splits["test"] == {"images/7.png", "images/8.png"}
    assert "its column split says" in caplog.text
    # Rows without one are drawn, as without the column.
    (own / "captions.csv").unlink()
    write(own, [row | {"split": "train"} for row in rows()[:1]] + rows()[1:])
    run(build, own)
    assert not rejected()
    write(own, [row | {"split": "train"} for row in rows()])
    with pytest.raises(UserError, match="none for test: mark some with test in split, or rename that column"):
        run(build, own)
    write(own, rows()[1:] + [row | {"split": "fold 3"} for row in rows()[:1]])
    run(build, own)
    assert [row["reason"] for row in rejected()] == ["unknown split"]


def split_of() -> dict[str, str]:
    found = {split: manifest.read(Path(f"data/own/{split}.parquet")) for split in manifest.SPLITS}
    return {row.id: split for split, rows in found.items() for row in rows}


def test_copies_of_a_picture_are_in_one_split(build: Build, own: Path, caplog) -> None:
    """Exact ones and near ones: another format, size and quality."""
    draw = np.random.default_rng(0)
    kinds = {"a.png": {}, "b.png": {}, "c.jpg": {"quality": 60}, "d.webp": {"quality": 80}}
    entries = []
    for number in range(12):
        picture = Image.fromarray(draw.integers(80, 180, (8, 12, 3), np.uint8)).resize((240, 160))
        for name, options in kinds.items():
            copy = picture.resize((119, 80)) if name == "c.jpg" else picture
            copy.save(own / f"{number}-{name}", **options)
            entries.append({"image": f"{number}-{name}", "caption": f"Caption of {number} {name}."})
    write(own, entries)
    run(build, own, folder={"test_share": 0.4})
    together = split_of()
    for number in range(12):
        assert len({together[f"{number}-{name}"] for name in kinds}) == 1
    assert set(together.values()) == set(manifest.SPLITS)
    copies = json.loads(Path("data/own/summary.json").read_text())["copies"]
    assert copies == {"pictures": 36, "in_another_split": 0}
    # Only those of a file: the PNGs, and they stay where they were.
    run(build, own, folder={"test_share": 0.4, "near_copies": 0})
    assert json.loads(Path("data/own/summary.json").read_text())["copies"]["pictures"] == 12
    assert {
        name: split for name, split in split_of().items() if name.endswith(".png")
    }.items() <= together.items()
    # Where a column says the splits, it is obeyed, and what that means is told.
    write(own, [row | {"split": "test" if "a.png" in row["image"] else "train"} for row in entries])
    run(build, own)
    assert "12 pictures are in another split than the first" in caplog.text


def test_too_few_pictures_for_the_shares(build: Build, own: Path) -> None:
    write(own, rows())
    with pytest.raises(
        UserError, match="10 usable pictures and none for test: add pictures, or change data.folder"
    ):
        run(build, own, folder={"test_share": 0.0})
