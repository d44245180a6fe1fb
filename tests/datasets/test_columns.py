"""Which column is which, roles of captions, groups, a second folder of pictures, a part of a set."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from goal.datasets import manifest
from goal.datasets.captions_file import read as read_file
from goal.datasets.columns import plain
from goal.errors import UserError
from goal.evaluation import galleries
from tests.datasets.conftest import Build
from tests.datasets.own import read, rejected, rows, run, write


def split_of() -> dict[str, str]:
    found = {split: manifest.read(Path(f"data/own/{split}.parquet")) for split in manifest.SPLITS}
    return {row.id: split for split, rows in found.items() for row in rows}


@pytest.mark.parametrize("name", ["Image", " image ", "IMAGE", "File Name", "file-name", "Image Path"])
def test_case_and_blanks_of_a_header_do_not_matter(build: Build, own: Path, name: str) -> None:
    write(own, [{name: row["image"], " Caption": row["caption"]} for row in rows()], ".csv")
    run(build, own)
    assert len(read()) == 10
    assert plain(name) in ("image", "file_name", "image_path")


def test_columns_that_params_name(build: Build, own: Path) -> None:
    entries = [
        {"Datei": row["image"], "path": "x", "Long": row["caption"], "caption": "no"} for row in rows()
    ]
    write(own, entries, ".csv")
    run(build, own, folder={"image_column": "Datei", "caption_column": "long"})
    assert read()["images/3.png"].captions == ("Caption 3.",)
    for field, name in (("image", "datum"), ("caption", "text"), ("short", "none"), ("group", "none")):
        columns = {"image_column": "Datei", "caption_column": "Long"} | {f"{field}_column": name}
        with pytest.raises(UserError, match=r"no row has .*fields found: Datei, Long, caption, path"):
            run(build, own, folder=columns)


def test_a_separator_that_the_header_does_not_show(build: Build, own: Path) -> None:
    lines = ["image~caption, long", *(f"{row['image']}~One, {row['caption']}" for row in rows())]
    (own / "captions.csv").write_text("\n".join(lines))
    run(build, own, folder={"separator": "~", "caption_column": "caption, long"})
    assert read()["images/3.png"].captions == ("One, Caption 3.",)


def test_several_columns_of_long_captions_and_short_ones_with_their_own_role(build: Build, own: Path) -> None:
    """The short ones become the benchmark `short`, and a table of the training pictures'."""
    entries = [
        row | {"second": f"Second {number}.", "alt": f"alt {number}" if number else ""}
        for number, row in enumerate(rows())
    ]
    entries.append({"image": "images/1.png", "caption": "Third 1.", "alt": ["alt 1", "more"]})
    write(own, entries)
    columns = {"caption_column": ["caption", "second"], "short_column": "alt", "test_share": 0.5}
    run(build, own, folder=columns)
    assert read()["images/1.png"].captions == ("Caption 1.", "Second 1.", "Third 1.")
    assert not rejected()
    known, short = split_of(), {}
    for name, split in (("short", "test"), ("short_train", "train")):
        found = manifest.read(Path(f"data/own/{name}.parquet"))
        assert {row.id for row in found} == {one for one in known if known[one] == split} - {"images/0.png"}
        short |= {row.id: row.captions for row in found}
    assert short["images/1.png"] == ("alt 1", "more")
    found, missing = galleries.load("own", mined=False)
    assert [gallery.benchmark for gallery in found] == ["test", "short"]
    assert all(text.startswith(("alt", "more")) for text in found[1].texts)
    # A set without them leaves none of an earlier one behind.
    run(build, own, folder={"caption_column": "caption"})
    assert not Path("data/own/short.parquet").exists()


def test_a_group_is_in_one_split_and_new_rows_do_not_move_it(build: Build, own: Path, caplog: Any) -> None:
    for number in range(10, 60):
        Image.new("RGB", (9, 9), (number * 4, 255 - number * 4, 80)).save(own / f"images/{number}.png")
    entries = [row | {"product": f"p{number // 5}"} for number, row in enumerate(rows(60))]
    write(own, entries)
    columns = {"group_column": "Product", "test_share": 0.4, "val_share": 0.2, "near_copies": 0}
    run(build, own, folder=columns)
    before = split_of()
    parts = [
        {before[f"images/{number}.png"] for number in range(5 * group, 5 * group + 5)} for group in range(12)
    ]
    assert all(len(part) == 1 for part in parts)
    assert set().union(*parts) == set(manifest.SPLITS)
    write(own, entries[:33] + entries[:40:-1])
    run(build, own, folder=columns)
    assert split_of().items() <= before.items()
    # A picture of two groups, and groups whose rows say otherwise.
    write(own, [*entries, entries[0] | {"caption": "Again.", "product": "other"}])
    run(build, own, folder=columns)
    assert [row["reason"] for row in rejected()] == ["picture in two groups"]
    write(own, [row | {"split": "test" if number % 2 else "train"} for number, row in enumerate(entries)])
    run(build, own, folder=columns)
    assert "12 groups are in more than one split, as their rows say" in caplog.text


def test_copies_join_groups(build: Build, own: Path) -> None:
    shutil.copy(own / "images/0.png", own / "images/10.png")
    write(own, [row | {"album": f"a{number % 5}"} for number, row in enumerate(rows(11))])
    run(build, own, folder={"group_column": "album", "test_share": 0.4, "near_copies": 0})
    known = split_of()
    # 10 is in the album of 0 and 5 by its name, and a copy of 0.
    assert len({known[f"images/{number}.png"] for number in (0, 5, 10)}) == 1


def test_pictures_elsewhere(build: Build, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second folder, at whole paths, from the home folder, behind a link."""
    other = own.parent / "elsewhere"
    (own / "images").rename(other)
    names = [f"{number}.png" for number in range(10)]
    write(own, [{"image": name, "caption": f"Caption {name}."} for name in names])
    run(build, own, images=str(other))
    assert len(read()) == 10
    assert not rejected()
    whole = [{"image": str(other / name), "caption": f"Caption {name}."} for name in names]
    write(own, whole)
    with pytest.raises(UserError, match="set data.images to the folder that holds them all, / for any"):
        run(build, own)
    run(build, own, images="/")
    assert len(read()) == 10
    monkeypatch.setenv("HOME", str(other))
    write(own, [{"image": f"~/{name}", "caption": f"Caption {name}."} for name in names])
    run(build, own, images=str(other))
    assert len(read()) == 10
    os.symlink(other, own / "linked")
    write(own, [{"image": f"linked/{name}", "caption": f"Caption {name}."} for name in names])
    run(build, own)
    assert len(read()) == 10


def test_the_folder_of_the_pictures_is_found_beside_a_file(build: Build, own: Path, caplog: Any) -> None:
    """As LLaVA's lists name theirs: from a folder images/, or from the folder above."""
    (own / "annotations").mkdir()
    for name in ("{}.png", "images/{}.png"):
        entries = [{"image": name.format(number), "caption": f"Caption {number}."} for number in range(10)]
        write(own / "annotations", entries).rename(own / "annotations/list.jsonl")
        with caplog.at_level("INFO"):
            run(build, own / "annotations/list.jsonl")
        assert len(read()) == 10
    assert f"pictures in {own / 'images'}" in caplog.text
    assert f"pictures in {own}" in caplog.text


@pytest.mark.parametrize("order", ["random", "first"])
def test_a_part_of_a_set(build: Build, own: Path, order: str) -> None:
    write(own, rows())
    run(build, own, limit=6, limit_order=order, folder={"test_share": 0.4, "near_copies": 0})
    found = read()
    assert len(found) == 6
    assert (set(found) == {f"images/{number}.png" for number in range(6)}) == (order == "first")
    assert {row.source for row in found.values()} == {"folder, limit 6"}
    # The same pictures, whatever comes after.
    again = rows()[::-1] if order == "random" else [*rows()[:6], *rows()[:5:-1]]
    write(own, again)
    run(build, own, limit=6, limit_order=order, folder={"test_share": 0.4, "near_copies": 0})
    assert set(read()) == set(found)


def test_scenes_have_sizes_of_their_own(build: Build) -> None:
    with pytest.raises(UserError, match=r"data: .*data.scenes has its own sizes"):
        build(limit=5)


def test_a_long_list_is_read_as_a_stream(tmp_path: Path) -> None:
    """Of a list whose end is broken the rows before are read, whatever the blocks cut through."""
    file = tmp_path / "list.json"
    entries = [{"image": f"{number}.png", "caption": "é" * (number % 977)} for number in range(9000)]
    file.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    assert [line.values for line in read_file(file)] == entries
    text = file.read_text(encoding="utf-8")
    line = text[: text.index('"8000.png"')].count("\n") + 1
    file.write_text(text.replace('"8000.png"', "8000.png"), encoding="utf-8")
    found = []
    with pytest.raises(UserError, match=f"list.json:{line}: not JSON"):
        found += (one.values for one in read_file(file))
