"""DOCCI in miniature, true layout, from a real server or by hand, and what all published sets share."""

import json
from pathlib import Path

import pytest

from goal.config import paths
from goal.datasets import docci
from goal.errors import UserError
from goal.runtime.download import Remote
from tests.datasets.conftest import Build
from tests.datasets.miniature import ids, jpeg, put, rejected, run, tar
from tests.datasets.server import Served, serve

DESCRIPTIONS = "docci_descriptions.jsonlines"
SPLITS = ["train", "train", "test", "qual_dev", "qual_test"]


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    monkeypatch.setattr(docci, "COUNTS", {"train": 2, "test": 1, "qual_dev": 1, "qual_test": 1})
    monkeypatch.setattr(docci, "DESCRIPTIONS", Remote(f"http://127.0.0.1:9/{DESCRIPTIONS}"))
    monkeypatch.setattr(docci, "IMAGES", Remote("http://127.0.0.1:9/docci_images.tar.gz"))
    names = [f"{split}_{number:05d}" for number, split in enumerate(SPLITS)]
    rows = [
        {"example_id": name, "split": split, "image_file": f"{name}.jpg", "description": f"Long: {name}."}
        for name, split in zip(names, SPLITS, strict=True)
    ]
    images = {f"images/{name}.jpg": jpeg(number) for number, name in enumerate(names)}
    return {DESCRIPTIONS: "\n".join(map(json.dumps, rows)).encode(), "docci_images.tar.gz": tar(images)}


def test_it_is_fetched_unpacked_and_split_once(build: Build, files, monkeypatch) -> None:
    served = {name: Served(content) for name, content in files.items()}
    with serve(served) as address:
        for remote in ("DESCRIPTIONS", "IMAGES"):
            monkeypatch.setattr(docci, remote, Remote(f"{address}/{getattr(docci, remote).file}"))
        splits = run(build, "docci")
        first = paths.manifest("my-docci", "train").read_bytes()
        run(build, "docci")
        assert paths.manifest("my-docci", "train").read_bytes() == first
    assert ids(splits) == {
        "train": ["train_00000", "train_00001"],
        "val": ["qual_dev_00003"],
        "test": ["test_00002"],
    }
    assert splits["test"][0].captions == ("Long: test_00002.",)
    picture = Path("downloads/docci/docci_images/images/test_00002.jpg").resolve()
    assert splits["test"][0].image == picture.as_posix()
    assert [len(file.asked) for file in served.values()] == [1, 1]


def test_files_on_disk_need_no_network_and_have_goals_gallery_too(build: Build, files, tmp_path) -> None:
    put(tmp_path, files)
    assert ids(run(build, "docci", tmp_path, gallery=5100))["test"] == ["qual_test_00004", "test_00002"]


def test_a_part_of_it_is_not_comparable(build: Build, files, tmp_path, caplog) -> None:
    put(tmp_path, files)
    splits = run(build, "docci", tmp_path, limit=3)
    assert sum(map(len, splits.values())) == 3
    assert {row.source for rows in splits.values() for row in rows} == {"docci, limit 3"}
    assert "data.limit 3: numbers are not comparable with others'" in caplog.text


def test_pictures_unpacked_by_hand_need_no_archive(build: Build, files, tmp_path) -> None:
    put(tmp_path, {DESCRIPTIONS: files[DESCRIPTIONS]})
    put(tmp_path, {f"images/{s}_{n:05d}.jpg": jpeg(n) for n, s in enumerate(SPLITS) if n != 1})
    assert ids(run(build, "docci", tmp_path))["train"] == ["train_00000"]
    assert [(row["id"], row["reason"]) for row in rejected("docci")] == [("train_00001", "not found")]


def test_counts_are_checked(build: Build, files, tmp_path) -> None:
    lines = files[DESCRIPTIONS].splitlines()
    put(tmp_path, files | {DESCRIPTIONS: b"\n".join(lines[1:])})
    with pytest.raises(UserError, match=r"jsonlines: 1 rows of train, expected 2"):
        run(build, "docci", tmp_path)
    put(tmp_path, {DESCRIPTIONS: b"\n".join(lines)[:-9]})
    with pytest.raises(UserError, match=r"jsonlines:5: not JSON"):
        run(build, "docci", tmp_path)
    for odd in (b"[]", b"7", b"null", b'{"example_id": "x"}', b'{"split": ["train"]}'):
        put(tmp_path, {DESCRIPTIONS: b"\n".join([*lines[:3], odd])})
        with pytest.raises(
            UserError, match=r"jsonlines:4: (no split|expected an object .*); delete the file"
        ) as caught:
            run(build, "docci", tmp_path)
        assert "\n" not in str(caught.value)


def test_a_split_that_docci_has_not_is_rejected(build: Build, files, tmp_path) -> None:
    put(tmp_path, files | {DESCRIPTIONS: files[DESCRIPTIONS] + b'\n{"split": "extra"}'})
    run(build, "docci", tmp_path)
    assert [(row["reason"], row["detail"]) for row in rejected("docci")] == [
        ("unreadable row", "unknown split 'extra'")
    ]


def test_a_hostile_archive_stops_the_stage_and_leaves_nothing(build: Build, files, tmp_path) -> None:
    put(tmp_path / "root", files | {"docci_images.tar.gz": tar({"../evil.jpg": jpeg(0)})})
    with pytest.raises(UserError, match="leads out of the folder"):
        run(build, "docci", tmp_path / "root")
    assert not list(tmp_path.rglob("evil.jpg"))
    assert not paths.data_dir("my-docci").exists()


SETS = ["docci", "dci", "sharegpt4v", "urban1k", "coco", "flickr30k"]


@pytest.mark.parametrize("source", [*SETS, "goal_lists"])
def test_terms_are_shown_and_must_be_accepted_set_by_set(build: Build, source: str, caplog) -> None:
    other = "dci" if source == "docci" else "docci"
    for accepted in ("", other):
        caplog.clear()
        with pytest.raises(
            UserError, match=rf"^{source}: its terms .* data\.download\.accept_terms: {source}$"
        ) as caught:
            run(build, source, accept=accepted)
        assert "\n" not in str(caught.value)
        assert "licence: " in caplog.text


def test_a_set_that_there_is_not_is_no_acceptance(build: Build) -> None:
    with pytest.raises(UserError, match=r"data\.download\.accept_terms: .* 'docci', 'dci'"):
        run(build, "docci", accept="docc")


@pytest.mark.parametrize("source", SETS)
def test_a_gallery_that_a_set_lacks_is_refused(build: Build, source: str, tmp_path) -> None:
    with pytest.raises(UserError, match=rf"data\.download\.gallery: {source} has none of 7, but \d+"):
        run(build, source, tmp_path, gallery=7)
