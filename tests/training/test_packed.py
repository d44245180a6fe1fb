"""Packed: tensors from files bit for bit, the same bytes every run, as WebDataset reads them."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from goal import boxes
from goal.clip import preprocess
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.images import open_image
from goal.model import architectures
from goal.training import packed

webdataset = pytest.importorskip("webdataset", reason="of the extra `scale`")

SIZES = [(300, 200), (64, 64), (50, 170), (33, 31)]
BOXES = {"p0": [(10.5, 20.0, 200.25, 111.0), (0.0, 0.0, 300.0, 200.0)], "p2": [(3.0, 5.0, 9.0, 160.0)]}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch) -> list[Row]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packed, "SHARD", 3)
    rng = np.random.default_rng(0)
    made = []
    for number, (width, height) in enumerate(SIZES):
        path = Path(f"p{number}.jpg")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        made.append(Row(f"p{number}", path.as_posix(), width, height, (f"caption {number}",), "test"))
    return made


@pytest.fixture(params=["center_crop", "squash"])
def spec(request):
    import dataclasses

    return dataclasses.replace(architectures.spec_of("scenes-vit"), view=request.param)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def folder() -> Path:
    (only,) = Path("work/packed").iterdir()
    return only


def test_tensors_are_those_from_the_files(rows, spec) -> None:
    prepare = preprocess(spec)
    pictures = pickle.loads(pickle.dumps(packed.prepare(rows, BOXES, spec, 10.0, 1)))  # noqa: S301
    for number, row in enumerate(rows):
        image = open_image(row.image, 10.0)
        assert torch.equal(prepare(pictures.whole(number)), prepare(image))
        for index, box in enumerate(BOXES.get(row.id, [])):
            crop = image.crop(boxes.pixels(box, image.size))
            assert torch.equal(prepare(pictures.crop(number, index)), prepare(crop))


def test_bytes_repeat_and_what_is_there_is_kept(rows, spec) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 2)
    first, made = folder(), digests(folder())
    assert set(made) == {"index.parquet", "pictures-000000.tar", "pictures-000001.tar"}
    times = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == times
    (first / "index.parquet").unlink()
    (first / "pictures-000001.tar").unlink()
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert digests(folder()) == made
    assert (first / "pictures-000000.tar").stat().st_mtime_ns == times[first / "pictures-000000.tar"]


def test_another_picture_box_or_view_is_packed_anew(rows, spec) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    packed.prepare(rows, {}, spec, 10.0, 1)
    Image.new("RGB", SIZES[0]).save(rows[0].image)
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert len(list(Path("work/packed").iterdir())) == 3
    assert np.asarray(pictures.whole(0)).max() == 0


def test_webdataset_reads_the_shards(rows, spec) -> None:
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    urls = [path.as_posix() for path in sorted(folder().glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert [sample["json"] for sample in samples] == [
        {"id": row.id, "captions": list(row.captions)} for row in rows
    ]
    for number, sample in enumerate(samples):
        assert np.array_equal(sample["whole.npy"], np.asarray(pictures.whole(number)))
    assert {"crop0.npy", "crop1.npy"} <= samples[0].keys()
    assert "crop0.npy" not in samples[1]


def test_a_picture_that_cannot_be_read_leaves_finished_shards_and_no_parts(rows, spec) -> None:
    content = Path(rows[3].image).read_bytes()
    Path(rows[3].image).write_bytes(content[:200])
    os.utime(rows[3].image, ns=(1, 1))
    with pytest.raises(UserError, match=r"p3\.jpg"):
        packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert list(digests(folder())) == ["pictures-000000.tar"]
    Image.new("RGB", (5, 5)).save(rows[3].image)
    with pytest.raises(UserError, match=r"p3\.jpg was changed since the manifest"):
        packed.prepare(rows, BOXES, spec, 10.0, 1)
