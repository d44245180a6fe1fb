"""Pictures read ahead by threads while the caller works on those before."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from PIL import Image

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    read: Callable[[Item], Result], items: Iterable[Item], threads: int, waiting: int = 0
) -> Iterator[Result]:
    """What `read` makes of each item, in order; at most `waiting` (0: `threads`) items are read ahead."""
    # Pillow registers its formats at the first picture, and two threads at once would trip over it.
    Image.init()
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        coming = deque(pool.submit(read, item) for item in islice(remaining, waiting or threads))
        while coming:
            result = coming.popleft().result()
            coming.extend(pool.submit(read, item) for item in islice(remaining, 1))
            yield result


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, of which the last may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def batches_ahead(read: Callable[[Item], Result], items: Iterable[Item], size: int) -> Iterator[list[Result]]:
    """What `read` makes of the items, in lists of `size`; while one is used, threads read the next."""
    return batches(ahead(read, items, len(os.sched_getaffinity(0)), size), size)
