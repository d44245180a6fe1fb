"""The nearest vectors: against comparing with all, also where no two vectors are near each other."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from goal.errors import UserError
from goal.search import ann, store
from goal.search.store import Card, Entry, Stamp
from tests.disks import Disk

WIDTH = 64
COUNT = 6000


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand vectors count as many, of which a tenth are compared again."""
    monkeypatch.setattr(ann, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(ann, "CANDIDATES", COUNT // 10)


def vectors_of(kind: str) -> np.ndarray:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((COUNT, WIDTH))
    if kind == "clustered":
        rows = np.repeat(draw.standard_normal((50, WIDTH)), COUNT // 50, axis=0) + 0.3 * rows
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def fill(place: Path, vectors: np.ndarray) -> store.Store:
    kept = store.create(place, Card("/pictures", "any", "0" * 64, "none", vectors.shape[1]))
    kept.change([Entry(b"%d" % row, Stamp(1, 1), vector) for row, vector in enumerate(vectors)], [])
    return kept


def share(kept: store.Store, vectors: np.ndarray, queries: np.ndarray, count: int = 10) -> float:
    """Of the nearest by comparing with all, the share that the index finds."""
    _, ids = ann.load(kept)(queries, count)
    rows = {number: int(path) for number, path in kept.paths(set(ids.flatten().tolist())).items()}
    truth = np.argsort(-queries @ vectors.T, axis=1)[:, :count].tolist()
    found = [{rows[number] for number in row} for row in ids.tolist()]
    return sum(len(one & set(other)) for one, other in zip(found, truth, strict=True)) / (
        count * len(queries)
    )


@pytest.mark.parametrize("kind", ["independent", "clustered"])
def test_a_small_index_finds_all_of_the_nearest(tmp_path: Path, kind: str) -> None:
    vectors = vectors_of(kind)
    assert share(fill(tmp_path, vectors), vectors, vectors[::100]) == 1.0
    assert not list(tmp_path.glob("*.faiss"))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["independent", "clustered"])
def test_a_large_index_finds_nearly_all_of_the_nearest(tmp_path: Path, kind: str) -> None:
    vectors = vectors_of(kind)
    kept = fill(tmp_path, vectors)
    assert share(kept, vectors, vectors[::100]) >= 0.95
    # Half precision: the cosine of a vector with itself.
    scores, _ = ann.load(kept)(vectors[:1], 1)
    assert scores[0, 0] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.usefixtures("large")
def test_more_may_be_asked_for_than_are_compared_again(tmp_path: Path) -> None:
    vectors = vectors_of("clustered")
    _, ids = ann.load(fill(tmp_path, vectors))(vectors[:1], COUNT // 5)
    assert len(set(ids[0].tolist())) == COUNT // 5
    assert -1 not in ids


@pytest.mark.usefixtures("large")
def test_a_width_without_sketches_is_compared_whole(tmp_path: Path) -> None:
    vectors = vectors_of("independent")[:, :61].copy()
    assert share(fill(tmp_path, vectors), vectors, vectors[::100]) == 1.0


@pytest.mark.usefixtures("large")
def test_a_changed_index_is_sketched_anew(tmp_path: Path) -> None:
    vectors = vectors_of("clustered")
    kept = fill(tmp_path, vectors)
    ann.prepare(kept)
    (first,) = tmp_path.glob("sketches-*")
    written = first.stat().st_mtime_ns
    ann.prepare(kept)
    assert first.stat().st_mtime_ns == written
    (tmp_path / f".{first.name}.0.tmp").write_text("what a kill left")
    kept.change([Entry(b"new", Stamp(1, 1), -vectors[0])], [b"0"])
    _, ids = ann.load(kept)(-vectors[:1], 1)
    assert kept.paths(ids[0].tolist()) == {ids[0, 0]: b"new"}
    left = [path.name for path in tmp_path.iterdir() if "faiss" in path.name]
    assert left == [f"sketches-{kept.version()}.faiss"]


@pytest.mark.usefixtures("large")
def test_damaged_sketches_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = vectors_of("clustered")
    kept = fill(tmp_path, vectors)
    ann.prepare(kept)
    (path,) = tmp_path.glob("sketches-*")
    path.write_bytes(path.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert share(kept, vectors, vectors[::100]) >= 0.95
    assert "damaged, built again" in caplog.text


@pytest.mark.usefixtures("large")
def test_a_full_disk_is_told_in_one_line_and_searched_all_the_same(
    small_disk: Callable[[int], Disk], caplog: pytest.LogCaptureFixture
) -> None:
    vectors = vectors_of("clustered")
    disk = small_disk(8192).path
    kept = fill(disk, vectors)
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
    with pytest.raises(UserError, match="sketches.*cannot be written"):
        ann.prepare(kept)
    assert share(kept, vectors, vectors[::100]) >= 0.95
    assert "cannot be written" in caplog.text
    assert not list(disk.glob("*sketches*"))


@pytest.mark.usefixtures("large")
def test_two_at_once_keep_the_same_sketches(tmp_path: Path) -> None:
    vectors = vectors_of("clustered")
    fill(tmp_path, vectors)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(lambda: share(store.opened(tmp_path), vectors, vectors[::100])) for _ in range(4)]
    assert min(job.result() for job in jobs) >= 0.95
    assert len(list(tmp_path.glob("*sketches*"))) == 1
