"""What comes out of loader processes: what this process would make, faults by name, with few open files."""

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


def test_a_picture_that_cannot_be_read_is_named_by_its_row() -> None:
    rows = trainings.rows(3, Path("images"))
    Path(rows[1].image).write_bytes(b"")
    data = made(rows, None, Needs(False, False, False))
    loader = batches.load(data, BatchSampler(3, 3, 1, 0, 0, 0, 1), Collate(SPEC, 0), 1, torch.device("cpu"))
    (found,) = list(loader)
    assert isinstance(found, Fault)
    assert rows[1].id in found.message
    assert "empty file" in found.message


def test_loader_processes_give_what_this_process_gives() -> None:
    rows = trainings.rows(6, Path("images"))
    data = made(rows, mined(rows))
    found = [
        list(
            batches.load(
                data, BatchSampler(6, 3, 2, 0, 0, 0, 1), Collate(SPEC, 2), workers, torch.device("cpu")
            )
        )
        for workers in (0, 2)
    ]
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(map(torch.equal, [*a.texts, *a[1:]], [*b.texts, *b[1:]]))
    assert np.all([len(chunks) == 2 for chunks in found[0]])


def _count(folder: str, workers: int) -> None:
    """In a process that may open 1,024 files: thirty chunks a batch, read ahead."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    rows = trainings.rows(128, Path("images"))
    data = made(rows, None, Needs(False, False, False))
    coming = batches.load(
        data, BatchSampler(128, 128, 12, 0, 0, 0, 1), Collate(SPEC, 4), workers, torch.device("cpu")
    )
    # Held, as batches on their way to a slow step are.
    seen = list(coming)
    assert [len(chunks) for chunks in seen] == [32] * 12


def test_many_chunks_do_not_use_up_the_files_a_process_may_open(tmp_path: Path) -> None:
    child = trainings.forks().Process(target=_count, args=(str(tmp_path), 1))
    child.start()
    child.join(300)
    # One whose loader has lost its files may wait for ever.
    child.kill()
    assert child.exitcode == 0
