"""DCI in miniature: its galleries, and its pictures, which come by hand."""

import json
import re

import pytest

from goal.datasets import dci
from goal.errors import UserError
from goal.runtime.download import Remote
from tests.datasets.conftest import Build
from tests.datasets.miniature import has, ids, jpeg, put, rejected, run, tar
from tests.datasets.server import Served, serve
from tests.imports import ROOT

FOLDER = "densely_captioned_images"


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Six annotated pictures; GOAL tests with 0 and 1, trains with 2 and 3."""
    monkeypatch.setattr(dci, "COUNT", 6)
    monkeypatch.setattr(dci, "LISTS", dict(zip((2, 4, 3, 6), dci.LISTS.values(), strict=True)))
    has(monkeypatch, "dci", 2, 4, 3, 6)
    monkeypatch.setattr(dci, "ARCHIVE", Remote("http://127.0.0.1:9/dci.tar.gz"))
    annotations = {
        f"{FOLDER}/annotations/{n}-data.json": json.dumps(
            {"image": f"sa_{n}.jpg", "short_caption": f"Short {n}. ", "extra_caption": f" More of {n}.\n"}
        ).encode()
        for n in range(6)
    }
    test = [{"filename": f"chage/path/to/your/directory/sa_{n}.jpg", "caption": "x"} for n in (0, 1)]
    train = [
        {"filename": f"x/sa_{n}.jpg_results/sa_{n}_max_37.png", "caption": "a roof", "similarity_score": 28.7}
        for n in (2, 3)
    ]
    return {
        "dci.tar.gz": tar(annotations | {f"{FOLDER}/splits.json": b"{}"}),
        "sa_000138.tar": tar({f"./sa_{n}.jpg": jpeg(n) for n in range(6)} | {"./sa_0.json": b"{}"}, "w"),
        "DCI_test.json": json.dumps(test).encode(),
        "DCI_segment_only_sim_max_del_org.json": json.dumps(train).encode(),
        "gallery-7602.txt": b"sa_0.jpg\nsa_4.jpg\nsa_5.jpg\n",
    }


def test_every_gallery_of_the_literature(build: Build, files, tmp_path) -> None:
    put(tmp_path, files)
    goal = run(build, "dci", tmp_path)
    assert ids(goal) == {"train": ["sa_2", "sa_3"], "val": ["sa_4", "sa_5"], "test": ["sa_0", "sa_1"]}
    assert goal["test"][0].captions == ("Short 0. More of 0.",)
    assert ids(run(build, "dci", tmp_path, gallery=4)) == {"test": ["sa_0", "sa_1", "sa_2", "sa_3"]}
    assert ids(run(build, "dci", tmp_path, gallery=6)) == {"test": [f"sa_{n}" for n in range(6)]}
    named = run(build, "dci", tmp_path, gallery=3)
    assert ids(named) == {"train": ["sa_1", "sa_2", "sa_3"], "test": ["sa_0", "sa_4", "sa_5"]}
    (tmp_path / "DCI_segment_only_sim_max_del_org.json").unlink()
    assert ids(run(build, "dci", tmp_path))["train"] == ["sa_2", "sa_3", "sa_4", "sa_5"]


def test_captions_are_fetched_where_photos_lie_ready(build: Build, files, tmp_path, monkeypatch) -> None:
    put(tmp_path, {"DCI_test.json": files["DCI_test.json"]})
    put(tmp_path / "photos", {f"sa_{n}.jpg": jpeg(n) for n in range(6)})
    with serve({"dci.tar.gz": Served(files["dci.tar.gz"])}) as address:
        monkeypatch.setattr(dci, "ARCHIVE", Remote(f"{address}/dci.tar.gz"))
        assert ids(run(build, "dci", tmp_path))["test"] == ["sa_0", "sa_1"]


def test_what_is_to_be_done_by_hand_is_said(build: Build, files, tmp_path, caplog) -> None:
    put(tmp_path, {name: files[name] for name in ("dci.tar.gz", "DCI_test.json")})
    with pytest.raises(UserError, match=r"no pictures of dci: accept the SA-1B licence .* sa_000138\.tar"):
        run(build, "dci", tmp_path)
    (tmp_path / "DCI_test.json").unlink()
    with pytest.raises(
        UserError, match=r"DCI_test\.json: not found; .* https://github\.com/\S+/GOAL/\S+/datasets "
    ):
        run(build, "dci", tmp_path)
    with pytest.raises(
        UserError, match=r"gallery-7602\.txt: not found; .*: bring your own \(docs/data\.md, Galleries"
    ):
        run(build, "dci", tmp_path, gallery=3)
    with pytest.raises(UserError):
        run(build, "dci", tmp_path, accept="")
    for name in ("sa_000138.tar", "DCI_test.json", "https://github.com/"):
        assert name in caplog.text


def test_the_sections_that_messages_point_to_are_there() -> None:
    """A message that says (docs/<file>, <section>) sends its reader there."""
    for source in (ROOT / "goal").rglob("*.py"):
        for page, section in re.findall(r"\((docs/\w+\.md), ([^)]+)\)", source.read_text()):
            assert re.search(rf"^#+ {section}$", (ROOT / page).read_text(), re.MULTILINE), source


def test_annotations_of_another_kind_are_rejected(build: Build, files, tmp_path) -> None:
    odd = [{"image": 5, "short_caption": "A.", "extra_caption": "B."}, [], {"image": "sa_2.jpg"}]
    put(tmp_path, {name: files[name] for name in ("sa_000138.tar", "gallery-7602.txt")})
    good = [{"image": f"sa_{n}.jpg", "short_caption": "A.", "extra_caption": "B."} for n in (0, 4, 5)]
    put(
        tmp_path / FOLDER / "annotations",
        {f"{n}.json": json.dumps(v).encode() for n, v in enumerate(good + odd)},
    )
    assert ids(run(build, "dci", tmp_path, gallery=3)) == {"test": ["sa_0", "sa_4", "sa_5"]}
    assert [(row["row"], row["reason"]) for row in rejected("dci")] == [
        (f"{n}.json", "unreadable row") for n in (3, 4, 5)
    ]


def test_counts_are_checked(build: Build, files, tmp_path, monkeypatch) -> None:
    put(tmp_path, files | {"gallery-7602.txt": b"sa_0.jpg\nsa_99.jpg\n"})
    with pytest.raises(
        UserError, match=r": gallery-7602\.txt: 1 of the pictures named there are annotated, expected 3"
    ):
        run(build, "dci", tmp_path, gallery=3)
    monkeypatch.setattr(dci, "COUNT", 7)
    with pytest.raises(UserError, match=r"6 annotated pictures, expected 7"):
        run(build, "dci", tmp_path)
