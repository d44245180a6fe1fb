"""Packed: tensors from files bit for bit, the same bytes every run, as WebDataset reads them."""

import dataclasses
import hashlib
import os
import pickle
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from goal import boxes
from goal.clip import preprocess
from goal.datasets.images import open_image
from goal.datasets.manifest import Row
from goal.errors import Interrupted, UserError
from goal.model import architectures
from goal.runtime import signals
from goal.training import packed
from tests.servers import until

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


@pytest.fixture
def spec(request):
    view = getattr(request, "param", "squash")
    return dataclasses.replace(architectures.spec_of("scenes-vit"), view=view)


BOTH_VIEWS = pytest.mark.parametrize("spec", ["center_crop", "squash"], indirect=True)


def digests(folder: Path) -> dict[str, str]:
    """Of all but the locks."""
    files = sorted(path for path in folder.iterdir() if path.suffix != ".lock")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def folder(kind: str = "crops") -> Path:
    (only,) = Path("work/packed").glob(f"{kind}-*")
    return only


@BOTH_VIEWS
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
    assert set(made) == {f"pictures-00000{n}.{suffix}" for n in (0, 1) for suffix in ("parquet", "tar")}
    times = {path: path.stat().st_mtime_ns for path in first.glob("pictures-*")}
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert {path: path.stat().st_mtime_ns for path in first.glob("pictures-*")} == times
    # Killed between a shard and its index, and in the middle of a shard.
    (first / "pictures-000001.parquet").unlink()
    (first / ".pictures-000001.tar.0123.tmp").write_bytes(b"half")
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert digests(folder()) == made
    assert (first / "pictures-000000.tar").stat().st_mtime_ns == times[first / "pictures-000000.tar"]


@BOTH_VIEWS
def test_another_picture_box_or_view_is_packed_anew(rows, spec) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    first = folder()
    packed.prepare(rows, {}, spec, 10.0, 1)
    Image.new("RGB", SIZES[0]).save(rows[0].image)
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert np.asarray(pictures.whole(0)).max() == 0
    # A pipeline goes back and forth between stages with crops and without; what is replaced goes.
    assert folder() != first
    assert folder("whole").exists()


def test_other_code_packs_anew(rows, spec, monkeypatch) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    first = folder()
    monkeypatch.setattr("goal.runtime.code.digest", lambda module="": "other")
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert folder() != first


def test_what_is_in_use_is_not_removed(rows, spec) -> None:
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    first = folder()
    other = {"p2": [(0.0, 0.0, 20.0, 20.0)]}
    packed.prepare(rows, other, spec, 10.0, 1)
    assert np.array_equal(pictures.crop(2, 0), packed.prepare(rows, BOXES, spec, 10.0, 1).crop(2, 0))
    assert first.exists()
    del pictures
    packed.prepare(rows, other, spec, 10.0, 1)
    assert not first.exists()


@BOTH_VIEWS
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
    assert list(digests(folder())) == ["pictures-000000.parquet", "pictures-000000.tar"]
    Image.new("RGB", (5, 5)).save(rows[3].image)
    with pytest.raises(UserError, match=r"p3\.jpg was changed since the manifest"):
        packed.prepare(rows, BOXES, spec, 10.0, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_packing_at_once_and_it_goes_on_later(rows, spec, monkeypatch, number: int) -> None:
    """A training, which packs, only takes signals down and acts upon them between two steps."""
    monkeypatch.setattr(packed, "SHARD", 1)
    # Long enough that the signal comes in the middle.
    many = [Row(f"{row.id}-{n:02d}", *list(vars(row).values())[1:]) for n in range(150) for row in rows]

    def send() -> None:
        until(lambda: any(Path("work/packed").glob("*/*.parquet")))
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted, match="packed pictures: stopped;"), signals.deferred() as asked:
        packed.prepare(many, {}, spec, 10.0, 1)
    sender.join()
    assert not asked()
    whole = digests(folder("whole"))
    assert 0 < len(whole) < 2 * len(many)
    packed.prepare(many, {}, spec, 10.0, 1)
    done = digests(folder("whole"))
    assert len(done) == 2 * len(many)
    assert whole.items() <= done.items()


def test_a_disk_that_fills_up_is_one_line_and_a_rerun_completes(rows, spec, small_disk, monkeypatch) -> None:
    disk = small_disk(60)
    monkeypatch.setenv("DVC_ROOT", str(disk.path))
    with pytest.raises(UserError, match=r"pictures-00000\d\.\w+: cannot be written: No space left on device"):
        packed.prepare(rows, BOXES, spec, 10.0, 2)
    (made,) = disk.path.glob("work/packed/*")
    assert all(name.startswith("pictures-") for name in digests(made))
    disk.grow(2000)
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 2)
    prepare = preprocess(spec)
    assert torch.equal(prepare(pictures.whole(3)), prepare(open_image(rows[3].image, 10.0)))
