"""The largest batch: reckoned from measured steps on a CPU, searched by refusal as on a GPU."""

from pathlib import Path

import pytest

from goal import fit_batch, layout, weights
from goal.fit_batch import Fit
from tests import trainings


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 100, 1000])
def test_the_search_ends_within_an_eighth_of_the_largest(largest: int) -> None:
    tried: list[int] = []

    def memory_of(size: int) -> int:
        tried.append(size)
        return size * 10

    found = fit_batch._on_gpu(memory_of, largest * 10 + 5)
    assert largest - max(1, found.batch_size // 8) < found.batch_size <= largest
    assert found.memory == found.batch_size * 10
    assert len(tried) < 25


def test_a_cpu_is_reckoned_from_small_batches() -> None:
    pair = 2**24
    found = fit_batch._on_cpu(lambda size: 1000 + pair * size, 1000 + 50 * pair)
    assert found == Fit(50, 1000 + 50 * pair, 1000 + 50 * pair)


def test_whole_steps_are_taken_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project()
    before = weights.digest(layout.model_dir("stage1")), sorted(map(str, tmp_path.rglob("*")))
    found = fit_batch.run(trainings.params(), "stage2")
    # A picture of 32 pixels takes kilobytes, a step's arithmetic megabytes.
    assert found.batch_size > 100
    assert found.memory <= found.limit
    assert (weights.digest(layout.model_dir("stage1")), sorted(map(str, tmp_path.rglob("*")))) == before
