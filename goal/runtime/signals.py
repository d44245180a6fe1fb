"""Signals that ask a command to stop: taken down, and acted upon where that leaves all in order."""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from goal.errors import Interrupted

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


@contextmanager
def taken_down(guarded: bool = False) -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT only set what the yielded function returns; a second one ends the process.

    Not where it is `guarded` by a parent that ends it when it takes too long: that parent hands on what a
    scheduler may have sent to all, and the same signal comes twice. Outside the main thread, where Python
    allows no handlers, the function returns False.
    """
    asked: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        if not asked:
            log.warning("%s: ending what has begun, then stopping", signal.Signals(number).name)
        asked.append(number)
        if not guarded:
            signal.signal(number, before[number])

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, take)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux for a SIGTERM when the thread that started this process ends, also by kill -9.

    DVC and torchrun do not take their children along when they are killed. `parent` is the process id
    that this process was started by, where it is known: it may be gone already. Raises Interrupted then.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        log.warning("prctl: %s; a kill of the parent leaves this process", os.strerror(ctypes.get_errno()))
    if parent is not None and os.getppid() != parent:
        raise Interrupted("the process that started this one is gone")


def ignored() -> None:
    """Leave signals to the parent: a data worker that a signal to the group ends would fail the last step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
