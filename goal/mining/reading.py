"""The pictures of a shard, read ahead by threads while the caller works on those before."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image

from goal.datasets.images import ImageError, open_image
from goal.datasets.manifest import Row

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Results of `function` in the order of the items; at most `threads` wait to be asked for."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        coming = deque(pool.submit(function, item) for item in islice(remaining, threads))
        while coming:
            result = coming.popleft().result()
            coming.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result


def picture(row: Row, root: Path, max_megapixels: float) -> Image.Image | ImageError:
    """The picture of a row, RGB in the image frame, or why there is none; `root` is the project's folder."""
    try:
        image = open_image(root / row.image, max_megapixels)
    except ImageError as error:
        return error
    if image.size != (row.width, row.height):
        width, height = image.size
        return ImageError(row.image, f"not of the manifest's size ({width} x {height} pixels)")
    return image


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, of which the last may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def kind(error: ImageError) -> str:
    """Why a picture cannot be read, without the details that differ from one to the next: to be counted."""
    return error.reason.partition(" (")[0].partition(":")[0]
