"""A lock belongs to one process: a kill gives it back, and the children of its holder have no share in it."""

import multiprocessing
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from goal.errors import UserError
from goal.runtime import locks
from goal.tracking import records
from goal.training.checkpoint import Checkpoints
from tests.servers import holder


def _train(folder: Path) -> AbstractContextManager[None]:
    return Checkpoints(folder, {"seed": 0}, 2).locked()


def _record(folder: Path) -> AbstractContextManager[None]:
    return records.lock("train")


def _refuse() -> None:
    raise records.Busy


def _lock(folder: Path) -> AbstractContextManager[None]:
    return locks.held(folder / "lock", _refuse)


@pytest.mark.parametrize("hold", [_train, _record, _lock])
def test_a_lock_ends_with_its_process_and_not_with_the_children_that_it_leaves(tmp_path, monkeypatch, hold):
    """As the data workers of a killed training, which look only every few seconds whether it still lives."""
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    with hold(tmp_path / "new"):
        child = context.Process(target=lambda: (begun.set(), time.sleep(600)))
        child.start()
        begun.wait()
        with pytest.raises((UserError, records.Busy)), hold(tmp_path / "new"):
            pass
    try:
        with hold(tmp_path / "new"):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_killed_process_gives_its_lock_to_the_one_that_waits(tmp_path):
    other = holder(tmp_path / "lock")
    calls = []

    def busy() -> None:
        calls.append("busy")
        other.kill()

    with locks.held(tmp_path / "lock", busy):
        assert other.wait() == -signal.SIGKILL
    assert calls == ["busy"]


def test_a_disk_that_refuses_a_lock_is_one_line(tmp_path, small_disk):
    disk = small_disk(64)
    disk.forbid_writing()
    with (
        pytest.raises(UserError, match=r"disk/lock: cannot be written: Read-only file system; make room"),
        locks.held(disk.path / "lock"),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/lock: cannot be written: "),
        locks.held(tmp_path / "file" / "lock"),
    ):
        pass
