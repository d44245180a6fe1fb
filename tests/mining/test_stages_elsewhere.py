"""The real work of `regions` and `pairs` on a cluster whose workers run in another folder."""

import shutil
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry

from benchmarks import small_sam
from goal import config, weights
from goal.config import paths
from goal.model.network import GoalClip
from goal.stages import pairs, regions
from tests import drawn
from tests.drawn import digests
from tests.mining.conftest import Cluster
from tests.regions import small_detector
from tests.tiny import SPEC


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project, in its folder the weights of a small SAM and of a detector, under relative paths."""
    drawn.make(tmp_path, monkeypatch)
    monkeypatch.setitem(sam_model_registry, "vit_b", small_sam.build)
    shutil.copy(small_sam.WEIGHTS, "sam.pth")
    small_detector.write(Path("detector.pth"))


def params() -> config.Params:
    given = drawn.params(regions={"sources": ["sam", "detector"], "min_area": 0.0})
    sam = {"model": "vit_b", "checkpoint": "sam.pth", "points_per_side": 4, "pred_iou_threshold": 0.5}
    detector = {"model": small_detector.MODEL, "checkpoint": "detector.pth", "min_score": 0.0, "max_boxes": 5}
    values = given.model_dump(by_alias=True)
    values["regions"]["sam"] |= sam
    values["regions"]["detector"] |= detector
    return config.parse(values, "test")


def mined() -> dict[str, str]:
    """The digests of all that the two stages write."""
    regions.run(params())
    pairs.run(params())
    return {
        f"{stage}/{name}": digest
        for stage in ("regions", "pairs")
        for name, digest in digests(Path(stage)).items()
    }


def test_a_cluster_writes_the_same_bytes_also_after_new_weights_of_the_same_name(
    cluster: Cluster, networks, monkeypatch
) -> None:
    def both() -> dict[str, str]:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
        there = mined()
        shutil.rmtree("work")
        monkeypatch.delenv("DASK_SCHEDULER_ADDRESS")
        assert mined() == there
        return there

    for _ in range(2):
        cluster.add_worker("--preload", "tests.regions.small_is_vit_b")
    before = both()
    assert '"detector": 35' in Path("regions/train/summary.json").read_text()
    assert '"sam": ' in Path("regions/train/summary.json").read_text()
    # The workers live on and have the old weights loaded.
    small_detector.write(Path("detector.pth"), seed=1)
    torch.manual_seed(1)
    weights.save(GoalClip(SPEC), paths.model_dir("zero-shot"))
    after = both()
    assert all(after[name] != before[name] for name in before if "shard" in name)
    assert {path.name for path in cluster.folder.iterdir()} <= {"scheduler.json", "dask-worker-space"}
