"""A batch in chunks against the whole batch: the same gradient, the memory of a chunk, also compiled."""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from goal.training import step
from goal.training.batches import Collate
from goal.training.examples import Examples, LocalPair, Needs, Sample
from tests import trainings
from tests.training import test_step
from tests.training.test_step import ALONE, WEIGHTS, chunks, gradients, made
from tests.trainings import SPEC

data = test_step.data


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "weights_",
    [
        WEIGHTS,
        {"global": 1.0, "hard_negative": 0.5, "short_caption": 0.5},
        {"local": 1.0},
        {"tsl_image": 1.0},
        {"local": 1.0, "local_hard_negative": 0.5, "sentence_patches": 0.7, "attention_temperature": 0.2},
        {"late_interaction": 1.0},
    ],
)
def test_chunks_give_the_gradient_of_the_whole_batch(
    data: Examples, size: int, weights_: dict[str, float]
) -> None:
    model = trainings.model()
    model.logit_scale.data.fill_(math.log(14.0))
    needs = Needs.of(weights_)
    whole = step.backward(model, chunks(data, 0, needs), weights_, ALONE, nullcontext)
    expected = gradients(model)
    parts = step.backward(model, chunks(data, size, needs), weights_, ALONE, nullcontext)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


class Kept:
    """A tensor saved for the backward pass; `now` and `most` count the bytes of all that exist."""

    now = most = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.tensor.nbytes


def drawn(count: int) -> list[Sample]:
    """Random pairs, one in eight without a usable region and sentence."""
    draw = torch.Generator().manual_seed(3)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    def view() -> torch.Tensor:
        return torch.randint(256, (3, 32, 32), generator=draw, dtype=torch.uint8)

    def text(length: int) -> torch.Tensor:
        words = torch.randint(1, 49406, (length - 2,), generator=draw)
        return torch.tensor([49406, *words.tolist(), 49407])

    samples = []
    for place in range(count):
        caption, start = text(number(12, 41)), number(1, 6)
        pair = LocalPair(
            view(), text(number(4, 12)), torch.rand(16, generator=draw) < 0.3, (start, start + 4)
        )
        samples.append(Sample(view(), caption, [pair] if place % 8 else [], None))
    return samples


def test_a_batch_of_512_in_chunks_has_the_gradient_of_the_whole_in_a_chunks_memory(monkeypatch) -> None:
    """A batch of 512 fits a small GPU, and its gradient differs from the whole batch's by 1e-5 at most."""
    model, samples = trainings.model(), drawn(512)
    found, most, towers = {}, {}, {}
    embed = step.embed

    def measured(*arguments: Any) -> Any:
        result = embed(*arguments)
        towers[size] = max(towers.get(size, 0), Kept.now)
        return result

    monkeypatch.setattr(step, "embed", measured)
    for size in (0, 32, 100):
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            step.backward(model, Collate(SPEC, size)(samples).chunks(), WEIGHTS, ALONE, nullcontext)
        found[size], most[size] = gradients(model), Kept.most
    for size in (32, 100):
        for name, value in found[0].items():
            assert (found[size][name] - value).norm() <= 1e-5 * value.norm(), (size, name)
    assert most[32] < most[100] < most[0] / 4
    assert towers[32] < towers[0] / 12
    # Small chunks need less than the objective, which has all 512 pairs at once.
    assert towers[32] < most[32] < most[0] / 11


def _compiled(folder: str) -> None:
    os.chdir(folder)
    passes: list[bool] = []

    def backend(graph: Callable, inputs: object) -> Callable:
        def run(*values: torch.Tensor) -> object:
            passes.append(torch.is_grad_enabled())
            return graph(*values)

        return run

    parts = chunks(made(Path("images")), 3)
    plain, model = trainings.model(), trainings.model()
    expected = step.backward(plain, parts, WEIGHTS, ALONE, nullcontext)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    found = step.backward(compiled, parts, WEIGHTS, ALONE, nullcontext)
    # Three chunks, each one graph, first without gradient and then with it.
    assert passes == [False] * 3 + [True] * 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.slow
def test_both_passes_of_a_chunked_step_are_compiled(tmp_path: Path) -> None:
    # In its own process: the shape checks of the tests would break the graph.
    child = trainings.forks().Process(target=_compiled, args=(str(tmp_path),))
    child.start()
    child.join(300)
    assert child.exitcode == 0
