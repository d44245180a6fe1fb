"""Pictures read ahead: in order, not too many at once, each fault kept to its picture."""

import threading

import pytest
from PIL import Image

from goal.datasets.images import ImageError
from goal.datasets.manifest import Row
from goal.mining import reading


def row(name: str, width: int = 10, height: int = 10) -> Row:
    return Row(name, f"{name}.png", width, height, ("A.",), "x")


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_results_come_in_order(threads):
    assert list(reading.ahead(lambda item: item * item, range(20), threads)) == [n * n for n in range(20)]


def test_no_more_wait_than_there_are_threads():
    begun, lock = [], threading.Lock()

    def begin(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    for taken in reading.ahead(begin, range(30), 4):
        # The one that is used, and the next four.
        assert len(begun) <= taken + 1 + 4


def test_a_fault_reaches_the_caller():
    results = reading.ahead(lambda item: 1 // item, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_take_all_in_order():
    assert list(reading.batches(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(reading.batches([], 3)) == []


def test_a_picture_of_another_size_is_not_the_rows(tmp_path):
    Image.new("RGB", (10, 20)).save(tmp_path / "a.png")
    assert reading.picture(row("a", 10, 20), tmp_path, 1).size == (10, 20)
    odd = reading.picture(row("a", 20, 10), tmp_path, 1)
    assert str(odd) == "a.png: not of the manifest's size (10 x 20 pixels)"
    assert reading.kind(odd) == "not of the manifest's size"


def test_reasons_are_counted_without_their_details(tmp_path):
    assert reading.kind(reading.picture(row("none"), tmp_path, 1)) == "not found"
    assert reading.kind(ImageError("a.png", "too large: 9 x 9 = 0 megapixels")) == "too large"
    assert reading.kind(ImageError("a.png", "damaged picture (cut at 90 bytes)")) == "damaged picture"
