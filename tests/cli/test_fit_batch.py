"""The largest batch: estimated from measured steps on a CPU, found by running out of memory on a GPU."""

from pathlib import Path
from typing import Any

import pytest

from goal import weights
from goal.cli import fit_batch
from goal.cli.fit_batch import Fit
from goal.config import paths
from goal.errors import UserError
from tests import trainings


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 100, 1000])
def test_the_search_ends_within_an_eighth_of_the_largest(largest: int) -> None:
    tried: list[int] = []

    def memory_of(size: int) -> int:
        tried.append(size)
        return size * 10

    found = fit_batch._on_gpu(memory_of, largest * 10 + 5, 10_000)
    assert largest - max(1, found.batch_size // 8) < found.batch_size <= largest
    assert found.memory == found.batch_size * 10
    assert len(tried) < 25


@pytest.mark.parametrize("most", [1, 2, 3, 7, 100, 1100])
def test_no_more_pairs_are_tried_than_there_are_pictures(most: int) -> None:
    """In chunks a pair takes almost no GPU memory, so the search would fill the host's memory instead."""
    tried: list[int] = []
    found = fit_batch._on_gpu(lambda size: tried.append(size) or 10, 1000, most)
    assert found.batch_size == max(tried) == most


def test_a_cpu_is_estimated_from_small_batches() -> None:
    pair = 2**24
    found = fit_batch._on_cpu(lambda size: 1000 + pair * size, 1000 + 50 * pair, 10_000)
    assert found == Fit(50, 1000 + 50 * pair, 1000 + 50 * pair)
    assert fit_batch._on_cpu(lambda size: 1000 + pair * size, 1000 + 50 * pair, 12).batch_size == 12


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_steps_are_taken_and_nothing_is_written(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project()
    before = weights.digest(paths.model_dir("stage1")), sorted(map(str, tmp_path.rglob("*")))
    real, held = fit_batch.step.backward, []

    def backward(model: Any, *arguments: Any) -> Any:
        held.append({value.grad is not None for value in model.parameters()})
        return real(model, *arguments)

    monkeypatch.setattr(fit_batch.step, "backward", backward)
    found = fit_batch.run(trainings.params(train__processes=processes), "stage2")
    # A pair of 32 pixel pictures takes kilobytes: all ten fit.
    assert found.batch_size == 10 // processes
    assert found.memory <= found.limit
    assert (weights.digest(paths.model_dir("stage1")), sorted(map(str, tmp_path.rglob("*")))) == before
    # With several processes the gradients, in DDP's buckets, also exist during the forward pass.
    assert all(one == {processes > 1} for one in held)


def test_more_processes_than_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project()
    with pytest.raises(UserError, match="train.processes 11: more than the pictures of data"):
        fit_batch.run(trainings.params(train__processes=11), "stage2")
