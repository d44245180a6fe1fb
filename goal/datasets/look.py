"""What a data set holds, before anything is set up for it: shape, columns, rows, lengths."""

import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from goal import language
from goal.datasets import copies, folder
from goal.datasets.captions_file import Line
from goal.datasets.columns import TURNS, answer, shown
from goal.datasets.folder_rows import Gathering, Usable, count_reasons

if TYPE_CHECKING:
    from goal.config import Params

# Rows whose pictures are opened, and those of them that are shown.
OPENED, SHOWN = 200, 3
# All rows are counted, or as many as there is time for.
SECONDS = 7.0
BETWEEN = 4096  # rows between two looks at the clock
# The most words of a caption in each bar of the histogram, and the longest bar in characters.
WORDS = (5, 10, 20, 50, 100, 200, 500)
BAR = 40


def lines(params: "Params") -> Iterator[str]:
    """The lines to show for data.path, which is only read; raises UserError as the data stage does."""
    began = time.monotonic()
    shape = folder.find(params.data)
    head = list(islice(shape.lines, OPENED))
    found, gathering = folder.usable(params, shape, head)
    yield folder.described(shape, gathering)
    yield f"columns: {shown(gathering.fields.values())}"
    for one in found[:SHOWN]:
        yield f"  {one.row.id}: {one.row.width} x {one.row.height} pixels: {one.row.captions[0]:.80}"
    yield from _opened(params, gathering, found)
    yield from _counted(chain(head, shape.lines), gathering, began)


def _opened(params: "Params", gathering: Gathering, found: list[Usable]) -> Iterator[str]:
    """Of the first rows, whose pictures were opened: usable ones, reasons of the others, copies, language."""
    reasons = count_reasons(gathering.rejected).items()
    lost = ", ".join(f"{number} x {reason}" for reason, number in reasons) or "none"
    yield f"the first {gathering.rows:,} rows: {len(found):,} usable pictures; rejected rows: {lost}"
    yield from (f"  {one}" for one in gathering.rejected[:SHOWN])
    alike = copies.first_alike(found, params.data.folder.near_copies)
    captions = (caption for one in found for caption in one.row.captions)
    spoken, copied = (
        language.guess(captions).capitalize() or "not clear",
        len(alike) - len(set(alike.values())),
    )
    yield f"  pictures that show the same as another: {copied:,}; language: {spoken}"


def _counted(rows: Iterable[Line], gathering: Gathering, began: float) -> Iterator[str]:
    """Of all rows, or those that there is time for: how many, repetitions, lengths of the captions."""
    picture, captions = (
        [gathering.fields.get(name, name) for name in gathering.used[what]] for what in ("picture", "caption")
    )
    named, said, lengths = array("q"), array("q"), [0] * (len(WORDS) + 1)
    number, whole = 0, True
    for number, line in enumerate(rows, 1):
        values = line.values
        for name in picture:
            if name in values:
                named.append(hash(str(values[name])))
        for name in captions:
            for text in _texts(values.get(name), name):
                said.append(hash(text))
                lengths[bisect_left(WORDS, text.count(" ") + 1)] += 1
        if number % BETWEEN == 0 and time.monotonic() - began > SECONDS:
            whole = False
            break
    yield f"rows: {number:,}" if whole else f"the first {number:,} rows, which took {SECONDS:.0f} seconds:"
    yield f"  pictures named again: {_again(named):,}; captions said again: {_again(said):,}"
    most = max(lengths)
    for least, end, count in zip((1, *(one + 1 for one in WORDS)), (*WORDS, None), lengths, strict=True):
        if count:
            words = f"{least}-{end}" if end else f"over {least - 1}"
            yield f"  {words:>8} words {count:>11,} {'#' * max(1, round(BAR * count / most))}"


def _texts(found: Any, name: str) -> list[str]:
    if isinstance(found, str):
        return [found]
    found = answer(found) if name in TURNS else found
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]


def _again(hashes: "array[int]") -> int:
    return len(hashes) - len(np.unique(np.frombuffer(hashes, np.int64))) if hashes else 0
