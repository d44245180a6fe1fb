"""benchmarks.methods trains what it says, and its intervals count pictures and seeds."""

import numpy as np
import pytest

from benchmarks import methods
from goal import config
from goal.training.plan import Plan
from tests.imports import ROOT


def weights(name: str) -> dict[str, float]:
    stage = methods.changed(config.load(ROOT / "params.yaml"), name, 3, 1e-4).stage2
    return {term: value for term, value in stage.loss.model_dump(by_alias=True).items() if value}


def test_each_method_is_stage_2_with_its_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = config.load()
    paper = {term: value for term, value in params.stage2.loss.model_dump(by_alias=True).items() if value}
    assert weights("GOAL, paper's weights") == paper
    assert weights("global") == {"global": 1.0, "attention_temperature": 0.1}
    assert weights("margins") == weights("global") | {"hard_negative": 0.5}
    recipe = Plan.of(params, "balanced").stage
    ours = methods.changed(params, "balanced", 3, params.stage2.lr)
    assert ours.stage2 == recipe
    assert ours.seed == 3
    twice = methods.changed(params, "global, equal compute", 0, 1e-4).stage2
    assert (twice.epochs, twice.lr) == (2 * params.stage2.epochs, 1e-4)
    # The baseline has the paper's batches, whatever the recipe has.
    assert methods.changed(params, "global", 0, 1e-4).stage2.neighbours == 0
    assert methods.changed(params, "alike batches", 0, 1e-4).stage2.neighbours == params.balanced.neighbours
    assert all(methods.changed(params, name, 0, 1e-4) for name, change in methods.METHODS.items() if change)


def test_the_interval_of_a_difference_grows_with_the_spread_of_the_seeds() -> None:
    draw = np.random.default_rng(0)
    ids = np.arange(400).astype(str)
    base = 100.0 * (draw.random((4, 400)) < 0.4)
    calm = methods.difference(base + 10, base, ids)
    assert calm["mean"] == pytest.approx(10)
    noisy = methods.difference(base + np.array([[-20.0], [0.0], [20.0], [40.0]]), base, ids)
    assert noisy["mean"] == pytest.approx(10)
    # By hand: the seeds' standard deviation is 25.82, t of 3 degrees of freedom 3.182, over the root of 4.
    assert (noisy["high"] - noisy["low"]) / 2 == pytest.approx(3.182 * 25.82 / 2, rel=0.02)
    assert calm["high"] - calm["low"] < 10
