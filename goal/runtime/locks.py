"""Locks between processes: files that a killed process gives back and a forked child has no share in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from goal.runtime import files

POLL_SECONDS = 0.2


@contextmanager
def held(path: Path, busy: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder if missing; wait while another process holds it.

    busy: called once before waiting; an exception of it ends the attempt. Raises UserError where the disk
    refuses.
    """
    lock = FileLock(path, poll_interval=POLL_SECONDS)
    if not _acquire(lock, path, blocking=False):
        if busy:
            busy()
        _acquire(lock, path, blocking=True)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, blocking: bool) -> bool:
    try:
        lock.acquire(blocking=blocking)
    except Timeout:
        return False
    except OSError as error:
        raise files.unwritable(path, error) from error
    return True
