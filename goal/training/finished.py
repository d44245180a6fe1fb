"""What a finished training leaves: its numbers, its loss curve, and the model with its card."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from goal import weights
from goal.config import Params, paths
from goal.runtime import files
from goal.training.learner import Learner
from goal.training.recipe import Recipe


def write(params: Params, recipe: Recipe, learner: Learner, counts: Mapping[str, int]) -> None:
    """Write metrics/<name>/ and, last, models/<name>/: the same bytes in every run of the same work."""
    folder = paths.metrics_dir(recipe.name)
    numbers = {
        "steps": learner.step,
        "stopped_early": learner.step < learner.steps,
        "data": dict(counts),
        "loss": learner.curve()[-1] if learner.step else {},
        "validation": learner.validations[-1] if learner.validations else {},
        "best_validation": learner.best or {},
    }
    files.write_json(numbers, folder / paths.NUMBERS)
    files.write_text(folder / paths.CURVE, _table(learner))
    card = {
        "name": recipe.name,
        "data": params.data.name,
        "source": params.data.source,
        "pretrained": _pretrained(recipe.start),
        "parent": {"path": str(recipe.start), "sha256": weights.digest(recipe.start)},
        "seed": params.seed,
        "params": {recipe.section: recipe.stage.model_dump(by_alias=True) | {"loss": recipe.weights}},
        "steps": learner.step,
    }
    weights.publish(learner.model, paths.model_dir(recipe.name), card)


def _pretrained(start: Path) -> str | None:
    """Which weights were the first of all, as the card of the start says."""
    card = start / paths.CARD
    return json.loads(card.read_text(encoding="utf-8")).get("pretrained") if card.exists() else None


def _table(learner: Learner) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, ["step", "lr", *learner.names], lineterminator="\n")
    table.writeheader()
    table.writerows(learner.curve())
    return text.getvalue()
