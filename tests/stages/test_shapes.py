"""Pictures inside other files, from `data` through regions, pairs and training to `evaluate`."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pytest
from PIL import Image

from goal import weights
from goal.config import paths
from goal.stages import data, evaluate, pairs, regions, train
from goal.training.progress import Silent
from tests import trainings

COUNT = 24


def entries() -> list[dict]:
    draw = np.random.default_rng(0)
    found = []
    for number in range(COUNT):
        content = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (48, 60, 3), np.uint8)).save(content, "PNG")
        caption = f"A picture of {number} things. The first is red. Another one is blue."
        found.append({"image": {"bytes": content.getvalue(), "path": None}, "caption": caption})
    return found


def parquet(folder: Path) -> None:
    pandas.DataFrame(entries()).to_parquet(folder / "data.parquet", row_group_size=5)


def arrow(folder: Path) -> None:
    table = pa.Table.from_pylist(entries())
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=7)


def webdataset(folder: Path) -> None:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, one in enumerate(entries()):
            for ending, content in (("png", one["image"]["bytes"]), ("txt", one["caption"].encode())):
                member = tarfile.TarInfo(f"{number:09}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("make", "packed"), [(parquet, False), (parquet, True), (arrow, False), (webdataset, False)]
)
def test_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], packed: bool
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "project").mkdir()
    make(tmp_path / "own")
    monkeypatch.chdir(tmp_path / "project")
    params = trainings.params(
        data__source="folder",
        data__path=str(tmp_path / "own"),
        train__packed=packed,
        train__loader_workers=1,
        stage1__epochs=1,
        stage2__epochs=1,
        regions__sources=["fixed"],
        regions__min_area=0.0,
        regions__workers=1,
        pairs__workers=1,
    )
    data.run(params)
    weights.save(trainings.model(), paths.model_dir("zero-shot"))
    regions.run(params)
    pairs.run(params)
    for name in ("stage1", "stage2"):
        train.run(params, name, Silent())
    evaluate.run(params, ["zero-shot", "stage2"])
    counts = json.loads(Path("pairs/train/summary.json").read_text())
    assert counts["unreadable"] == {}
    test = json.loads(Path("metrics/stage2/test.json").read_text())
    assert 0 < test["images"] < COUNT
    assert list((tmp_path / "own").rglob("*.png")) == []
