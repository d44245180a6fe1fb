"""The crops of the joint benchmark: those of the data set, otherwise the best mined pairs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from goal.datasets import manifest
from goal.errors import UserError
from goal.evaluation import galleries
from goal.evaluation.galleries import Picture
from tests import tiny


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny.make(tmp_path, monkeypatch)


def test_joint_takes_the_best_usable_pair(project: Path) -> None:
    tiny.write_pairs(
        tiny.pair("p0", 0.9, dropped="whole image wins"),
        tiny.pair("p0", 0.3, start=2, end=5),
        tiny.pair("p0", 0.5, caption=1, start=0, end=6, x2=30.0),
        tiny.pair("p1", 0.9, dropped="whole image wins"),
    )
    found = {gallery.benchmark: gallery for gallery in galleries.load("tiny")[0]}["joint"]
    assert found.pictures == (
        Picture("data/tiny/images/0.png"),
        Picture("data/tiny/images/0.png", (0.0, 0.0, 30.0, 20.0)),
    )
    assert found.texts == ("Number 0.", "Number")
    assert found.ids == ("p0", "p0")


def test_damaged_pairs_name_the_stage_to_run_again(project: Path) -> None:
    tiny.write_pairs(tiny.pair("p0", 0.9))
    shard = Path("pairs/test/shard-00000.parquet")
    pq.write_table(pq.read_table(shard).drop(["similarity"]), shard)
    with pytest.raises(UserError, match=r"no column similarity; `dvc repro --force pairs` writes it anew"):
        galleries.load("tiny")


def test_own_crops_come_before_mined_ones(project: Path) -> None:
    tiny.write_pairs(tiny.pair("p0", 0.3))
    box = {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}
    own = {"id": "c", "of": "p3", "image": "data/tiny/images/3.png", **box, "caption": "A sail."}
    manifest.write_table(manifest.table([own], manifest.JOINT), Path("data/tiny/joint.parquet"))
    found = {gallery.benchmark: gallery for gallery in galleries.load("tiny")[0]}["joint"]
    assert found.texts == ("A boat.", "A sail.")
    assert found.pictures[1] == Picture("data/tiny/images/3.png", (1.0, 2.0, 3.0, 4.0))
    own["of"] = "p9"
    manifest.write_table(manifest.table([own], manifest.JOINT), Path("data/tiny/joint.parquet"))
    with pytest.raises(UserError, match=r"joint.parquet: 'p9' is not a test picture"):
        galleries.load("tiny")
