"""Finished shards replace a whole folder or nothing; only what was published is forgotten."""

import pytest

from goal.errors import UserError
from goal.mining import shards
from tests.mining.squares import ROWS, Squares, run


def test_working_folders_are_named_by_their_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    one = shards.working_folder("regions", "train", "a", "b")
    assert one == shards.working_folder("regions", "train", "a", "b")
    assert len({one, shards.working_folder("regions", "train", "ab", ""), one.with_name("x")}) == 3


def test_only_published_runs_of_the_split_are_forgotten(tmp_path):
    this, published, running, other = (
        tmp_path / name for name in ("train-1", "train-2", "train-3", "test-1")
    )
    for folder in (this, published, running, other):
        folder.mkdir()
    (published / shards.PUBLISHED).touch()
    (other / shards.PUBLISHED).touch()
    shards.forget_others(this)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["test-1", "train-1", "train-3"]


def test_a_published_run_that_another_process_holds_is_not_forgotten(tmp_path):
    this, published = tmp_path / "train-1", tmp_path / "train-2"
    for folder in (this, published):
        folder.mkdir()
    (published / shards.PUBLISHED).touch()
    with shards.held(published, "squares"):
        shards.forget_others(this)
        assert published.exists()
    shards.forget_others(this)
    assert not published.exists()


def test_publishing_replaces_the_whole_folder(tmp_path, log):
    target = tmp_path / "regions" / "train"
    target.mkdir(parents=True)
    (target / "shard-00099.parquet").touch()
    paths = run(Squares(str(log)), tmp_path / "out")
    shards.publish(paths, {"rows": ROWS}, target)
    assert sorted(path.name for path in target.iterdir()) == [*(path.name for path in paths), "summary.json"]
    assert [path.name for path in target.parent.iterdir()] == ["train"]
    assert paths[0].read_bytes() == (target / paths[0].name).read_bytes()


def test_a_disk_that_fills_up_while_publishing_keeps_what_was_there(tmp_path, small_disk, log):
    disk = small_disk(24)
    target = disk.path / "regions" / "train"
    target.mkdir(parents=True)
    (target / "summary.json").write_text("{}")
    paths = run(Squares(str(log)), tmp_path / "out")
    with pytest.raises(
        UserError, match=r"regions/train: cannot be written: No space left on device; make room"
    ):
        shards.publish(paths, {"rows": ROWS}, target)
    assert [path.name for path in target.iterdir()] == ["summary.json"]
    assert [path.name for path in target.parent.iterdir()] == ["train"]
    disk.grow(1024)
    shards.publish(paths, {"rows": ROWS}, target)
    assert len(list(target.iterdir())) == 1 + len(paths)
