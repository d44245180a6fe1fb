"""Mixed weights: their values, the rule that chooses alpha, the stage, and what is refused."""

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from goal import weights
from goal.config import paths
from goal.datasets import manifest
from goal.errors import UserError
from goal.model.network import GoalClip
from goal.stages import mix
from goal.training import mixture
from goal.training.mixture import Point
from goal.training.progress import Silent
from goal.training.validation import Validation
from tests import trainings
from tests.trainings import SPEC

CURVE = [Point(0, 30, 20), Point(0.3, 36, 20.5), Point(0.6, 41, 19), Point(0.8, 43, 18.9), Point(1, 42, 12)]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_every_weight_lies_alpha_of_the_way(alpha: float) -> None:
    start, end = trainings.model(0), trainings.model(1)
    found = mixture.interpolate(start, end, alpha).state_dict()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(found[name], (1 - alpha) * value + alpha * end.state_dict()[name])


def test_networks_of_another_shape_or_context_are_not_mixed() -> None:
    other = GoalClip(replace(SPEC, context_length=60))
    with pytest.raises(UserError, match=r"context 40.*context 60.*different networks"):
        mixture.interpolate(trainings.model(), other, 0.5)


@pytest.mark.parametrize(("drop", "alpha"), [(0.0, 0.3), (1.0, 0.6), (1.2, 0.8), (9.0, 0.8)])
def test_the_best_on_long_captions_that_keeps_the_short_ones_is_chosen(drop: float, alpha: float) -> None:
    assert mixture.choose(CURVE, drop).alpha == alpha
    assert mixture.choose(CURVE[::-1], drop).alpha == alpha


def test_of_equal_ones_the_smallest_alpha_is_chosen_and_a_single_one_is_taken() -> None:
    assert mixture.choose([Point(0, 10, 5), Point(1, 20, 5), Point(0.5, 20, 5)], 0).alpha == 0.5
    assert mixture.choose([Point(0.7, 1, 1)], 0).alpha == 0.7


def test_the_stage_measures_each_mixture_and_says_what_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project(val=6)
    params = trainings.params(
        mix={"model": "stage1", "alphas": [0.0, 0.5, 1.0], "max_short_drop": 100.0}, train__device="cpu"
    )
    mix.run(params, Silent())
    with Path("metrics/mixed/mix.csv").open() as file:
        curve = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    rows = manifest.read(paths.manifest("tiny", "val"))
    firsts = [replace(row, captions=(row.captions[0].split(". ")[0] + ".",)) for row in rows]
    networks = [trainings.model(0), mixture.interpolate(trainings.model(0), trainings.model(1), 0.5)]
    for row, network in zip(curve, [*networks, trainings.model(1)], strict=True):
        for kind, pictures in (("long", rows), ("short", firsts)):
            found = Validation(pictures, SPEC, 200, 4).measure(network, nullcontext, 0)
            values = [value for way in ("text_to_image", "image_to_text") for value in found[way].values()]
            assert row[kind] == pytest.approx(sum(values) / 6, abs=0.01)
    chosen = json.loads(Path("metrics/mixed/mix.json").read_text())
    assert chosen["long"] == pytest.approx(max(row["long"] for row in curve), abs=0.01)
    card = weights.card(paths.model_dir(paths.MIXED))
    assert card["alpha"] == chosen["alpha"]
    assert [one["path"] for one in card["parents"]] == ["models/base", "models/stage1"]
    assert [one["sha256"] for one in card["parents"]] == [
        weights.digest(paths.model_dir(name)) for name in ("zero-shot", "stage1")
    ]
    mixed = weights.load(paths.model_dir(paths.MIXED)).state_dict()
    wanted = mixture.interpolate(trainings.model(0), trainings.model(1), chosen["alpha"]).state_dict()
    assert all(torch.equal(mixed[name], value) for name, value in wanted.items())


def test_own_short_captions_are_measured_with_their_own_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some pictures have none, and the others come in another order."""
    monkeypatch.chdir(tmp_path)
    trainings.project(val=6)
    rows = manifest.read(paths.manifest("tiny", "val"))
    short = [replace(rows[place], captions=(f"A short text {place}.",)) for place in (4, 1, 3)]
    manifest.write(short, paths.manifest("tiny", "short_val"))
    params = trainings.params(mix__model="stage1", mix__alphas=[0.0, 1.0])
    found = list(mixture.curve(params, trainings.model(0), trainings.model(1)))
    for point, seed in zip(found, (0, 1), strict=True):
        alone = Validation(short, SPEC, 200, 4).measure(trainings.model(seed), nullcontext, 0)
        values = [value for way in ("text_to_image", "image_to_text") for value in alone[way].values()]
        assert point.short == pytest.approx(sum(values) / 6, abs=0.01)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [([0.5, 1.0], "must hold 0"), ([0.0, 1.5], "less than or equal to 1"), ([], "at least 1")],
)
def test_alphas_that_cannot_be_are_refused(alphas: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainings.params(mix__alphas=alphas)


def test_without_validation_pictures_alpha_cannot_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project()
    manifest.write([], paths.manifest("tiny", "val"))
    with pytest.raises(UserError, match=r"no pictures.*set one value"):
        mix.run(trainings.params(mix__model="stage1"), Silent())
    mix.run(trainings.params(mix__model="stage1", mix__alphas=[0.5]), Silent())
    assert weights.card(paths.model_dir(paths.MIXED))["alpha"] == 0.5
