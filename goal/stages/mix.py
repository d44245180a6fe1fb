"""The mix stage: the model `mixed`, whose weights lie between zero-shot's and a trained model's."""

import csv
import io
import logging

from goal import weights
from goal.config import Params, paths
from goal.runtime import files
from goal.training import mixture
from goal.training.progress import Tracker

log = logging.getLogger(__name__)


def run(params: Params, tracker: Tracker) -> None:
    """Measure the mixtures of mix.alphas in validation and write the chosen one, with the curve.

    Writes models/mixed/, metrics/mixed/mix.csv (alpha, recall on long and short captions) and mix.json.
    Raises UserError for two different networks, before anything is measured.
    """
    start, end = (weights.load(folder) for folder in mixture.folders(params))
    points = []
    for place, point in enumerate(mixture.curve(params, start, end)):
        points.append(point)
        values = _known(point)
        log.info("mixture: %s", ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        tracker.log_metrics({f"mix/{name}": value for name, value in values.items()}, place)
    chosen = mixture.choose(points, params.mix.max_short_drop)
    log.info("mixed: alpha %g of the way from zero-shot to %s", chosen.alpha, params.mix.model)
    folder = paths.metrics_dir(paths.MIXED)
    files.write_text(folder / paths.MIX_CURVE, _csv(points))
    files.write_json(_known(chosen), folder / paths.MIX)
    card = {
        "name": paths.MIXED,
        "data": params.data.name,
        "source": params.data.source,
        "pretrained": weights.card(mixture.folders(params)[0]).get("pretrained"),
        "parents": [{"path": str(one), "sha256": weights.digest(one)} for one in mixture.folders(params)],
        "alpha": chosen.alpha,
        "params": {"mix": params.mix.model_dump()},
    }
    weights.publish(mixture.interpolate(start, end, chosen.alpha), paths.model_dir(paths.MIXED), card)


def _csv(points: list[mixture.Point]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["alpha", "long", "short"])
    writer.writerows(vars(point).values() for point in points)
    return text.getvalue()


def _known(point: mixture.Point) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(point).items() if value is not None}
