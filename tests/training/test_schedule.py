"""The learning rate: the paper's cosine, and the warm-up as documented."""

import math

import pytest

from goal.training.schedule import learning_rate


def test_without_warm_up_it_falls_from_the_peak_along_a_cosine() -> None:
    rates = [learning_rate(step, 100, 0, 5e-6) for step in range(100)]
    assert rates[0] == 5e-6
    assert rates[50] == pytest.approx(2.5e-6)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 5e-6 * (1 + math.cos(math.pi * 0.99)) / 2 + 1e-12


def test_the_warm_up_rises_linearly_to_the_peak() -> None:
    rates = [learning_rate(step, 20, 4, 1.0) for step in range(20)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert max(rates) == 1.0


@pytest.mark.parametrize(("step", "steps", "warmup"), [(5, 5, 0), (-1, 5, 0), (0, 5, 5), (0, 0, 0)])
def test_steps_outside_the_training_are_refused(step: int, steps: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="warm-up"):
        learning_rate(step, steps, warmup, 1.0)
