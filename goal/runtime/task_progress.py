"""Progress of the running task, reported to a progress bar in this or another process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def advance(rows: int) -> None:
    """Report that the running task has finished some more rows."""
    _report(rows)


def _report(rows: int) -> None:
    """Where `advance` reports to outside `reporting_to`: nowhere."""


@contextmanager
def reporting_to(report: Callable[[int], Any]) -> Iterator[None]:
    """Within, `report` is called with the rows that tasks of this process have finished."""
    global _report
    before, _report = _report, report
    try:
        yield
    finally:
        _report = before
