"""Files appear whole or not at all."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from goal.errors import UserError
from goal.runtime import files


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a.txt"
    with files.atomic(path) as draft:
        draft.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with files.atomic(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_folders_on_the_way_are_made_and_a_file_in_their_place_is_one_line(tmp_path):
    files.write_json({}, tmp_path / "new" / "deep" / "b.json")
    with pytest.raises(UserError, match=r"b\.json/c: cannot be written: .*; make room or fix it"):
        files.write_json({}, tmp_path / "new" / "deep" / "b.json" / "c" / "d.json")


def test_json_refuses_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json({"mean": float("nan")}, tmp_path / "a.json")
    files.write_json({"ä": [1]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"ä": [1]}


def test_a_folder_takes_the_others_place(tmp_path):
    old, draft = tmp_path / "out", tmp_path / "draft"
    for folder, name in ((old, "old"), (draft, "new")):
        folder.mkdir()
        (folder / name).touch()
    files.replace_folder(draft, old)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/new"]


def test_a_digest_is_of_the_bytes(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"goal")
    other.write_bytes(b"goal")
    assert files.digest(one) == files.digest(other) == hashlib.sha256(b"goal").hexdigest()
    other.write_bytes(b"goals")
    assert files.digest(one) != files.digest(other)
    with pytest.raises(UserError, match="cannot be read"):
        files.digest(Path(tmp_path / "none"))
