"""Batches of alike captions: which pictures come together, against a naive reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from goal.training import alike
from goal.training.batches import BatchSampler
from tests import trainings


def unit(count: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def naive(order: list[int], captions: torch.Tensor, neighbours: int) -> list[list[int]]:
    left, groups = list(order), []
    while left:
        first = left.pop(0)
        near = sorted(left, key=lambda other: -float(captions[first] @ captions[other]))[:neighbours]
        left = [other for other in left if other not in near]
        groups.append([first, *near])
    return groups


@pytest.mark.parametrize("neighbours", [1, 3, 40])
def test_each_picture_is_followed_by_those_with_the_most_alike_captions(neighbours: int) -> None:
    captions, order = unit(30), np.random.default_rng(1).permutation(30)
    found = alike.grouped(order, captions, neighbours, np.random.default_rng(2)).tolist()
    groups = naive(order.tolist(), captions, neighbours)
    shuffled = np.random.default_rng(2).permutation(len(groups))
    assert found == [picture for place in shuffled for picture in groups[place]]


def test_large_sets_are_grouped_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cosines of all pictures with all others would not fit the memory."""
    monkeypatch.setattr(alike, "BLOCK", 8)
    order = np.random.default_rng(1).permutation(20)
    found = alike.grouped(order, unit(20), 7, np.random.default_rng(2))
    blocks = [set(order[start : start + 8].tolist()) for start in (0, 8, 16)]
    starts = np.cumsum([0, *(len(blocks[place]) for place in np.random.default_rng(2).permutation(3))])
    parts = [set(found[a:b].tolist()) for a, b in zip(starts, starts[1:], strict=False)]
    assert sorted(map(sorted, parts)) == sorted(map(sorted, blocks))


def test_look_alikes_share_a_batch_in_every_epoch() -> None:
    families = torch.eye(10, dtype=torch.float64).repeat_interleave(4, 0)
    sampler = BatchSampler(40, 8, 3, 0, 0, 0, 1, families, 3)
    batches = [[key.index for key in keys] for keys in sampler]
    for batch in batches:
        assert sorted(index // 4 for index in batch) == sorted([batch[0] // 4] * 4 + [batch[4] // 4] * 4)
    epochs = [sum(batches[start : start + 5], []) for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_embeddings_of_the_start_are_kept_for_a_training_that_resumes(tmp_path: Path) -> None:
    captions = ["A red ball.", "A green house.", "A red ball lies in the middle."]
    file = tmp_path / alike.FILE
    before = alike.embeddings(trainings.model(0), captions, file)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(3))
    assert torch.equal(alike.embeddings(trainings.model(1), captions, file), before)
    file.unlink()
    assert not torch.equal(alike.embeddings(trainings.model(1), captions, file), before)
