"""Packed: tensors from files bit for bit, the same bytes every run, whole shards or none."""

import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import shutil
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
    view = preprocess(spec).view
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    sent = pickle.dumps(pictures)
    assert len(sent) < 1000
    pictures = pickle.loads(sent)  # noqa: S301
    for number, row in enumerate(rows):
        image = open_image(row.image, 10.0)
        assert torch.equal(pictures.whole(number), view(image))
        for index, box in enumerate(BOXES.get(row.id, [])):
            crop = image.crop(boxes.pixels(box, image.size))
            assert torch.equal(pictures.crop(number, index), view(crop))


def test_bytes_repeat_and_what_is_there_is_kept(rows, spec) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 2)
    first, made = folder(), digests(folder())
    assert set(made) == {"views-000000000.npy", "views-000000003.npy"}
    times = {path: path.stat().st_mtime_ns for path in first.glob("views-*")}
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert {path: path.stat().st_mtime_ns for path in first.glob("views-*")} == times
    # Killed in the middle of a shard.
    (first / "views-000000003.npy").rename(first / ".views-000000003.npy.0123.tmp")
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert digests(folder()) == made
    assert (first / "views-000000000.npy").stat().st_mtime_ns == times[first / "views-000000000.npy"]


def test_shards_are_arrays_of_all_views(rows, spec) -> None:
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    first, second = (np.load(path) for path in sorted(folder().glob("*.npy")))
    # Three pictures with two, no and one crop, then one without.
    side = spec.image_size
    assert (first.shape, second.shape) == ((6, 3, side, side), (1, 3, side, side))
    assert np.array_equal(first[2], pictures.crop(0, 1))
    assert np.array_equal(second[0], pictures.whole(3))


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_shard_is_refused_in_one_line(rows, spec, keep: int) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    os.truncate(folder() / "views-000000003.npy", keep)
    packed._mapped.cache_clear()  # as in a new process
    line = r"^\S+views-000000003\.npy: damaged \(.+\); remove \S+ and pack again$"
    with pytest.raises(UserError, match=line):
        packed.prepare(rows, BOXES, spec, 10.0, 1)


def _prepare(rows, spec) -> None:
    packed.SHARD = 3
    packed.prepare(rows, BOXES, spec, 10.0, 1)


def test_processes_that_pack_at_once_make_each_shard_once(rows, spec) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_prepare, args=(rows, spec)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    both = digests(folder())
    shutil.rmtree(folder())
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert digests(folder()) == both


@BOTH_VIEWS
def test_another_picture_box_or_view_is_packed_anew(rows, spec) -> None:
    packed.prepare(rows, BOXES, spec, 10.0, 1)
    first = folder()
    packed.prepare(rows, {}, spec, 10.0, 1)
    Image.new("RGB", SIZES[0]).save(rows[0].image)
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert pictures.whole(0).max() == 0
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


def test_a_picture_that_cannot_be_read_leaves_finished_shards_and_no_parts(rows, spec) -> None:
    content = Path(rows[3].image).read_bytes()
    Path(rows[3].image).write_bytes(content[:200])
    os.utime(rows[3].image, ns=(1, 1))
    with pytest.raises(UserError, match=r"p3\.jpg"):
        packed.prepare(rows, BOXES, spec, 10.0, 1)
    assert list(digests(folder())) == ["views-000000000.npy"]
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
        until(lambda: any(Path("work/packed").glob("*/*.npy")))
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted, match="packed pictures: stopped;"), signals.deferred() as asked:
        packed.prepare(many, {}, spec, 10.0, 1)
    sender.join()
    assert not asked()
    whole = digests(folder("whole"))
    assert 0 < len(whole) < len(many)
    packed.prepare(many, {}, spec, 10.0, 1)
    done = digests(folder("whole"))
    assert len(done) == len(many)
    assert whole.items() <= done.items()


def test_a_disk_that_fills_up_is_one_line_and_a_rerun_completes(rows, spec, small_disk, monkeypatch) -> None:
    disk = small_disk(60)
    monkeypatch.setenv("DVC_ROOT", str(disk.path))
    with pytest.raises(UserError, match=r"views-00000000\d\.npy: cannot be written: No space left on device"):
        packed.prepare(rows, BOXES, spec, 10.0, 2)
    (made,) = disk.path.glob("work/packed/crops-*")
    assert all(name.startswith("views-") for name in digests(made))
    disk.grow(2000)
    pictures = packed.prepare(rows, BOXES, spec, 10.0, 2)
    assert torch.equal(pictures.whole(3), preprocess(spec).view(open_image(rows[3].image, 10.0)))
