"""The `regions` stage and its networks' weights: which file they are, and that their content decides."""

import hashlib
from pathlib import Path

import pytest
from segment_anything import sam_model_registry

from benchmarks import small_sam
from goal import config
from goal.config import paths
from goal.errors import UserError
from goal.regions import build, checkpoints, sam, sam_weights, with_weights
from goal.runtime import download
from goal.runtime.download import CHUNK, Remote
from goal.stages import regions as stage
from tests import drawn
from tests.datasets.server import Served, serve
from tests.drawn import digests
from tests.regions import small_detector


def params(sources: list[str], sam: str = "", detector: str = "") -> config.Params:
    values = drawn.params().model_dump(by_alias=True)
    values["regions"] |= {"sources": sources, "min_area": 0.0}
    values["regions"]["sam"] |= {"model": "vit_b", "checkpoint": sam, "points_per_side": 4}
    values["regions"]["detector"] |= {"model": small_detector.MODEL, "checkpoint": detector, "min_score": 0.0}
    return config.parse(values, "test")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sam_model_registry, "vit_b", small_sam.build)
    return drawn.make(tmp_path, monkeypatch)


def test_other_weights_under_the_same_name_are_other_regions(project: Path) -> None:
    given = params(["detector"], detector="detector.pth")
    small_detector.write(project / "detector.pth")
    stage.run(given)
    first = digests(project / "regions")
    small_detector.write(project / "detector.pth", 1)
    stage.run(given)
    second = digests(project / "regions")
    assert all(second[name] != first[name] for name in first if "shard" in name)
    small_detector.write(project / "detector.pth")
    stage.run(given)
    assert digests(project / "regions") == first


def test_the_same_weights_under_another_name_make_no_shard_anew(project: Path) -> None:
    small_detector.write(project / "one.pth")
    stage.run(params(["detector"], detector="one.pth"))
    made = {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")}
    (project / "one.pth").rename(project / "two.pth")
    stage.run(params(["detector"], detector="two.pth"))
    assert {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")} == made


def test_parameters_of_unused_sources_make_no_shard_anew(project: Path) -> None:
    given = params(["fixed"])
    stage.run(given)
    made = {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")}
    values = given.model_dump(by_alias=True)
    values["regions"]["sam"]["points_per_side"] += 1
    values["regions"]["felzenszwalb"]["sigma"] += 1
    stage.run(config.parse(values, "test"))
    assert {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")} == made


def test_a_worker_that_sees_another_file_refuses_it(project: Path) -> None:
    """On another machine the same path may be another file."""
    small_detector.write(project / "detector.pth")
    regions = with_weights(params(["detector"], detector="detector.pth").regions)
    work = stage.Propose(
        str(paths.manifest("drawn", "train")), regions.model_dump_json(), ("0" * 64,), 1.0, str(project)
    )
    with pytest.raises(UserError, match=r"detector\.pth: not the file that the command found there"):
        work(0, 1)


def test_sams_weights_are_fetched_once_before_any_work(project: Path, monkeypatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    content = small_sam.WEIGHTS.read_bytes()
    served = Served(content, ["drop"], drop_after=3 * CHUNK)
    with serve({"sam_small.pth": served}) as address:
        remote = Remote(f"{address}/sam_small.pth", len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(sam_weights.CHECKPOINTS, "vit_b", remote)
        regions = with_weights(params(["fixed", "sam"]).regions)
    fetched = project / "downloads" / "sam" / "sam_small.pth"
    assert checkpoints(regions) == [fetched]
    assert fetched.read_bytes() == content
    assert served.asked == ["", f"bytes={3 * CHUNK}-"]
    # The server is gone by now.
    assert with_weights(params(["fixed", "sam"]).regions) == regions
    assert isinstance(build(regions).sources[1], sam.MaskGenerator)


def test_sources_without_weights_need_none(project: Path) -> None:
    given = params(["fixed", "felzenszwalb"], sam="no.pth", detector="no.pth").regions
    assert with_weights(given) == given
    assert checkpoints(given) == []
