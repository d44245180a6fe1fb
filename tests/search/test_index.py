"""An index keeps up with its folder and says what it leaves out."""

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from goal.errors import UserError
from goal.search import index, store
from tests.search import photos
from tests.search.photos import PLACE, embedded, picture, run, vectors


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return photos.make(tmp_path, monkeypatch)


def test_every_picture_has_its_vector(project: Path) -> None:
    found = run(project)
    assert sorted(found) == [b"a.png", b"b.jpg", b"deep/c.png", b"deep/d.webp"]
    for path, vector in found.items():
        np.testing.assert_allclose(vector, embedded(project / os.fsdecode(path)), atol=1e-5)


def test_only_new_and_changed_files_are_read_again(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = run(project)
    picture(project / "deep/e.png", 5)
    picture(project / "a.png", 6)
    (project / "no.png").write_text("no picture, and tried again each time")
    (project / "b.jpg").unlink()
    after = run(project)
    assert "4 pictures: 2 embedded, 2 as before; 1 dropped" in caplog.text
    assert sorted(after) == [b"a.png", b"deep/c.png", b"deep/d.webp", b"deep/e.png"]
    assert np.array_equal(after[b"deep/c.png"], before[b"deep/c.png"])
    assert not np.allclose(after[b"a.png"], before[b"a.png"])
    version = store.opened(PLACE).version()
    run(project)
    assert "4 pictures: 0 embedded, 4 as before; 0 dropped" in caplog.text
    assert store.opened(PLACE).version() == version


def test_a_picture_that_is_none_any_more_leaves_the_index(project: Path) -> None:
    run(project)
    (project / "a.png").write_text("no longer")
    assert b"a.png" not in run(project)


def test_a_third_of_the_files_are_no_pictures(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        (project / f"note-{number}.txt").write_text("not a picture")
        (project / f"empty-{number}.jpg").touch()
    cut = (project / "a.png").read_bytes()[:200]
    (project / "cut.png").write_bytes(cut)
    (project / "archive.jpg").write_bytes(b"PK\x03\x04" + bytes(100))
    os.mkfifo(project / "pipe.jpg")
    (project / "nowhere.png").symlink_to("missing.png")
    assert len(run(project)) == 4
    counted = dict(
        reversed(record.getMessage().removeprefix("left out: ").split(", ")[0].split(" x "))
        for record in caplog.records
        if record.getMessage().startswith("left out")
    )
    assert counted == {"not a picture": "21", "empty file (0 bytes)": "20", "damaged picture": "1"}


@pytest.mark.slow
def test_ten_thousand_files_of_which_a_third_are_no_pictures(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10_000):
        folder = project / f"{number // 1000}"
        folder.mkdir(exist_ok=True)
        if number % 3:
            picture(folder / f"{number}.jpg", number)
        else:
            (folder / f"{number}.jpg").write_text("not a picture")
    found = run(project)
    assert len(found) == 4 + 6666
    assert "left out: 3334 x not a picture" in caplog.text
    np.testing.assert_allclose(found[b"3/3001.jpg"], embedded(project / "3/3001.jpg"), atol=1e-5)


def test_folders_that_are_not_looked_into_are_counted_and_keep_their_pictures(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A path that is too long cannot be listed, whoever asks; a folder that became a link is not followed."""
    caplog.set_level(logging.INFO)
    before = run(project)
    (project / "deep").rename(tmp_path / "elsewhere")
    (project / "deep").symlink_to(tmp_path / "elsewhere")
    picture(project / "new.png", 7)
    with contextlib.chdir(project):
        for _ in range(25):
            os.mkdir("x" * 200)
            os.chdir("x" * 200)
    found = run(project)
    assert sorted(found) == [b"a.png", b"b.jpg", b"deep/c.png", b"deep/d.webp", b"new.png"]
    assert np.array_equal(found[b"deep/c.png"], before[b"deep/c.png"])
    assert "5 pictures: 1 embedded, 2 as before; 0 dropped" in caplog.text
    assert "left out: 1 x linked folder, not followed, such as deep" in caplog.text
    assert "left out: 1 x File name too long, such as xxx" in caplog.text


def test_an_id_is_never_given_twice(project: Path) -> None:
    """A page that was opened before must not show another picture in the place of one that went."""
    run(project)
    kept = store.opened(PLACE)
    last = max(int(ids.max()) for ids, _ in kept.vectors())
    (path,) = kept.paths([last]).values()
    os.unlink(os.path.join(os.fsencode(project), path))
    picture(project / "new.png", 7)
    assert b"new.png" in run(project)
    assert kept.paths([last]) == {}


def test_names_are_bytes(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = os.fsencode(project)
    odd = [
        b"a b.png",
        b'it\'s "so".png',
        b"two\nlines.png",
        b"caf\xe9.png",
        "日本.png".encode(),
        b"[red].png",
    ]
    for seed, name in enumerate(odd):
        picture(os.path.join(root, name), 10 + seed)
    Path(os.fsdecode(os.path.join(root, b"bad\xff\n.txt"))).write_text("x")
    found = run(project)
    assert set(odd) < set(found)
    assert "such as bad\\xff\\n.txt" in caplog.text
    assert len(run(project)) == 10


def test_a_folder_without_a_file_drops_nothing(project: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing: holds no file; nothing was indexed or dropped"):
        run(tmp_path / "nothing")
    before = run(project)
    project.rename(tmp_path / "elsewhere")
    project.mkdir()
    with pytest.raises(UserError, match="holds no file"):
        run(project)
    assert vectors().keys() == before.keys()


def test_an_index_of_another_model_or_folder_is_refused_by_name(project: Path, tmp_path: Path) -> None:
    run(project)
    with pytest.raises(UserError, match=r"index: made by models/base \(custom, .*not by models/stage1 \("):
        run(project, model=Path("models/stage1"))
    with pytest.raises(UserError, match=r"is the index of .*photos; give another one with --index"):
        run(tmp_path / "data/tiny")


def test_files_that_vanish_meanwhile_are_counted(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is read first; then a file goes and another changes."""
    listed = index._list

    def then_change(root: bytes, place: bytes) -> index.Listing:
        found = listed(root, place)
        (project / "a.png").unlink()
        picture(project / "b.jpg", 99)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(index, "_list", then_change)
        assert len(run(project)) == 3
    assert "1 x not found, such as a.png" in caplog.text
    # Its stamp is that of before the change, so the next run reads it again.
    np.testing.assert_allclose(run(project)[b"b.jpg"], embedded(project / "b.jpg"), atol=1e-5)


def test_the_index_does_not_index_itself(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert len(run(project, project / "index")) == 4
    assert "left out" not in caplog.text


def test_a_broken_index_is_one_line(project: Path) -> None:
    run(project)
    (PLACE / store.DATABASE).write_text("not a database" * 100)
    with pytest.raises(UserError, match=r"pictures.sqlite: file is not a database; .*remove index"):
        run(project)
    sqlite3.connect("other.sqlite").execute("CREATE TABLE other (id INTEGER)")
    Path("other.sqlite").replace(PLACE / store.DATABASE)
    with pytest.raises(UserError, match=r"pictures.sqlite: no such table: card; .*remove index"):
        run(project)
