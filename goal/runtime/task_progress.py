"""How far the running task is, told to whoever drives it: a progress bar, here or in another process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def advance(rows: int) -> None:
    """Tell the progress bar, wherever it is, that the running task has done some more rows."""
    _report(rows)


def _report(rows: int) -> None:
    """What `advance` calls; replaced while an engine listens."""


@contextmanager
def told(report: Callable[[int], Any]) -> Iterator[None]:
    """Within, `report` is called with the rows that tasks of this process have done."""
    global _report
    before, _report = _report, report
    try:
        yield
    finally:
        _report = before
