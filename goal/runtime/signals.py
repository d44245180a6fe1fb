"""Signals that ask a command to stop: it saves first, or ends at once."""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from goal.errors import Interrupted

log = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


@contextmanager
def deferred(guarded: bool = False) -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT only set what the yielded function returns; a second one ends the process.

    guarded: a parent process ends this one if it takes too long. A second signal then changes nothing: it is
    often the first one, sent to all processes by a scheduler, which the parent forwards.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not asked:
            log.warning("%s: finishing what has begun, then stopping", signal.Signals(number).name)
        asked.append(number)
        if not guarded:
            signal.signal(number, before[number])

    before = _handlers()
    with _replaced(before, note):
        yield lambda: bool(asked)


@contextmanager
def at_once(message: str) -> Iterator[None]:
    """Within, SIGTERM and SIGINT end the work where it is; raises Interrupted with this message."""
    try:
        with _replaced(_handlers(), signal.default_int_handler):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(message) from error


def _handlers() -> dict[int, Any]:
    """The handlers of SIGTERM and SIGINT; none outside the main thread, where Python lets nobody set them."""
    main = threading.current_thread() is threading.main_thread()
    return {number: signal.getsignal(number) for number in STOPS} if main else {}


@contextmanager
def _replaced(before: dict[int, Any], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore() -> None:
    """Leave signals to the parent: a data worker that ends early would fail the training's last step."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux for a SIGTERM when the thread that started this process ends, also by kill -9.

    DVC and torchrun leave their children running when they are killed. parent: process id of the process that
    started this one, where known; raises Interrupted if it has already ended.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        log.warning("prctl: %s; a kill of the parent leaves this process", os.strerror(ctypes.get_errno()))
    if parent is not None and os.getppid() != parent:
        raise Interrupted("the process that started this one is gone")
