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
    try:
        try:
            hold = lock.acquire(blocking=False)
        except Timeout:
            if busy:
                busy()
            hold = lock.acquire()
    except OSError as error:
        raise files.unwritable(path, error) from error
    with hold:
        yield
