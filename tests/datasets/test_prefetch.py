"""Read ahead: in order, not too many at once, faults where they belong."""

import threading

import pytest

from goal.datasets import prefetch


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_results_come_in_order(threads):
    assert list(prefetch.ahead(lambda item: item * item, range(20), threads)) == [n * n for n in range(20)]


def test_no_more_wait_than_there_are_threads():
    begun, lock = [], threading.Lock()

    def begin(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    for taken in prefetch.ahead(begin, range(30), 4):
        # The one that is used, and the next four.
        assert len(begun) <= taken + 1 + 4


def test_a_fault_reaches_the_caller():
    results = prefetch.ahead(lambda item: 1 // item, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_take_all_in_order():
    assert list(prefetch.batches(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(prefetch.batches([], 3)) == []


def test_while_a_batch_is_used_the_next_is_read_and_no_more():
    begun, lock = [], threading.Lock()

    def begin(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    found = []
    for batch in prefetch.batches_ahead(begin, range(10), 4):
        found.append(batch)
        assert len(begun) <= sum(map(len, found)) + 4
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
