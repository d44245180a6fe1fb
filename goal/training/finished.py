"""Write the results of a finished training: its numbers, its loss curve, and the model with its card."""

import csv
import io
from collections.abc import Mapping

from goal import weights
from goal.config import Params, paths
from goal.runtime import files
from goal.training.examples import Needs
from goal.training.learner import Learner
from goal.training.plan import Plan


def write(params: Params, plan: Plan, learner: Learner, counts: Mapping[str, int]) -> None:
    """Write metrics/<name>/ and, last, models/<name>/: the same bytes for the same Plan.identity.

    counts: of the pictures and pairs (Examples.counts).
    """
    folder = paths.metrics_dir(plan.name)
    numbers = {
        "steps": learner.step,
        "stopped_early": learner.step < learner.steps,
        "views": _views(plan, learner.step),
        "data": dict(counts),
        "loss": learner.curve()[-1] if learner.step else {},
        "validation": learner.validations[-1] if learner.validations else {},
        "best_validation": learner.best or {},
    }
    files.write_json(numbers, folder / paths.NUMBERS)
    files.write_json(_validation(plan, learner), folder / paths.VALIDATION)
    files.write_text(folder / paths.CURVE, _csv(learner))
    card = {
        "name": plan.name,
        "data": params.data.name,
        "source": params.data.source,
        "pretrained": weights.card(plan.start).get("pretrained"),
        "parents": [{"path": str(plan.start), "sha256": weights.digest(plan.start)}],
        "seed": params.seed,
        "params": {plan.section: plan.stage.model_dump(by_alias=True) | {"loss": plan.loss_weights}},
        "steps": learner.step,
    }
    weights.publish(learner.result, paths.model_dir(plan.name), card)


def _views(plan: Plan, steps: int) -> int:
    """Pictures and crops encoded, if every picture has its pairs: what a fair comparison must count."""
    crops = plan.stage.pairs.per_step if plan.local and Needs.of(plan.loss_weights).crops else 0
    return steps * plan.stage.batch_size * (1 + crops)


def _validation(plan: Plan, learner: Learner) -> dict[str, float]:
    """Validation recall (percent) of the weights that become the model; keys as in the evaluation's files."""
    found = learner.best if plan.stage.keep == "best" else (learner.validations or [None])[-1]
    names = [(direction, k) for direction in ("text_to_image", "image_to_text") for k in ("r1", "r10")]
    return {f"{direction}_{k}": found[direction][k] for direction, k in names} if found else {}


def _csv(learner: Learner) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", "lr", *learner.names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(learner.curve())
    return text.getvalue()
