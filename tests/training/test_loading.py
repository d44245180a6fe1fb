"""Loader processes: the same batches as without them, faults that name the picture, few open files."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from goal.training import batches
from goal.training.batches import BatchSampler, Collate
from goal.training.examples import Fault, Needs
from tests import trainings
from tests.training.test_batches import made, mined
from tests.trainings import SPEC


@pytest.fixture(autouse=True)
def _in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_picture_that_cannot_be_read_is_named_by_its_id() -> None:
    rows = trainings.rows(3, Path("images"))
    Path(rows[1].image).write_bytes(b"")
    data = made(rows, None, Needs(False, False, False))
    loader = batches.load(data, BatchSampler(3, 3, 1, 0, 0, 0, 1), Collate(SPEC, 0), 1, torch.device("cpu"))
    (found,) = list(loader)
    assert isinstance(found, Fault)
    assert rows[1].id in found.message
    assert "empty file" in found.message


def test_loader_processes_give_the_same_batches_as_this_process() -> None:
    rows = trainings.rows(6, Path("images"))
    data = made(rows, mined(rows))
    sampler, cpu = BatchSampler(6, 3, 2, 0, 0, 0, 1), torch.device("cpu")
    found = [list(batches.load(data, sampler, Collate(SPEC, 2), workers, cpu)) for workers in (0, 2)]
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(map(torch.equal, [*a.texts, *a[1:]], [*b.texts, *b[1:]]))
    assert np.all([len(chunks) == 2 for chunks in found[0]])


def _load(folder: str, workers: int) -> None:
    """Load 32 chunks per batch, with prefetching, in a process that may open 1,024 files."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    rows = trainings.rows(128, Path("images"))
    data = made(rows, None, Needs(False, False, False))
    loader = batches.load(
        data, BatchSampler(128, 128, 12, 0, 0, 0, 1), Collate(SPEC, 4), workers, torch.device("cpu")
    )
    # A list keeps all batches, as a training slower than its loader does.
    kept = list(loader)
    assert [len(chunks) for chunks in kept] == [32] * 12


def test_many_chunks_do_not_use_up_the_files_a_process_may_open(tmp_path: Path) -> None:
    child = trainings.forks().Process(target=_load, args=(str(tmp_path), 1))
    child.start()
    child.join(300)
    # A process that cannot open the loader's files may wait forever.
    child.kill()
    assert child.exitcode == 0
