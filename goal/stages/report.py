"""The report stage: all results as tables, plots and one HTML page that works offline."""

import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from goal.config import paths
from goal.evaluation import compare, results, table
from goal.evaluation.results import Results
from goal.reporting import examples, facts, plots
from goal.reporting.page import Chart, Content, render
from goal.runtime import files

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

# The page is about the registered model, compared with a fair baseline and the untrained model.
BASELINE, BEFORE = "global", "zero-shot"


def run(params: "Params", experiment: str = "") -> str:
    """Write reports/: table.md, table.csv, recall.csv, pictures/*.png and index.html.

    experiment: the id of the MLflow experiment, where a server answers: the page then links to the runs.
    Returns the model that the page is about. Raises UserError where a result is missing, or where the models
    were measured with different protocols.
    """
    found = results.load(results.evaluated())
    folder = paths.reports_dir()
    files.write_text(folder / "table.md", table.markdown(found))
    files.write_text(folder / "table.csv", table.as_csv(found))
    files.write_text(folder / "recall.csv", table.recall_csv(found))
    mined = facts.mining()
    charts = [*_benchmarks(found), *_lengths(found), *_training(found), *_similarities(mined)]
    files.make_folder(folder / "pictures")
    for chart in charts:
        plots.png(chart.figure, folder / "pictures" / f"{chart.name}.png")
    page = render(params.data.name, found, charts, _content(params, found, mined, experiment))
    files.write_text(folder / "index.html", page)
    log.info("open %s", folder / "index.html")
    ours = params.register_.model
    return ours if ours in found.models else found.models[-1]


def _content(params: "Params", found: Results, mined: dict[str, dict[str, Any]], experiment: str) -> Content:
    name, most, section = params.data.name, params.data.max_megapixels, params.report
    ours = params.register_.model
    others = [model for model in found.models if model != ours]
    return Content(
        leaders=compare.leaders(found),
        comparisons={other: _differences(params, other) for other in others} if ours in found.models else {},
        data=facts.data(name),
        mining=mined,
        pairs=examples.pairs(name, "train", section.gallery, most),
        queries=examples.queries(name, ours, BASELINE, section.examples, most)
        if found.of(ours, "test") and found.of(BASELINE, "test")
        else None,
        before=BEFORE,
        after=ours,
        grounded=list(examples.grounded(name, BEFORE, ours, section.grounding, most))
        if {ours, BEFORE} <= set(found.models)
        else [],
        origin=facts.origin(found, experiment),
    )


def _differences(params: "Params", other: str) -> list[compare.Line]:
    """The differences between our model and another one, headline metrics only."""
    lines = compare.compare(params.register_.model, other, params.evaluate.ks)
    return [line for line in lines if line.metric.endswith(f"_{results.headline(line.benchmark)}")]


def _benchmarks(found: Results) -> Iterator[Chart]:
    for label, measured in found.benchmarks.items():
        metric = results.headline(label)
        figure = plots.recall_bars(measured, metric, table.METRICS[metric])
        yield Chart("benchmarks", _slug(label), f"{label}: mean and 95 % interval; dashed: chance.", figure)
        if "attribute" in measured[0].by:
            figure = plots.by_group(measured, "attribute", metric, table.METRICS[metric])
            caption = f"{label}: by the attribute that differs; chance is 50 %."
            yield Chart("benchmarks", f"{_slug(label)}-by-attribute", caption, figure)


def _lengths(found: Results) -> Iterator[Chart]:
    for label, measured in found.benchmarks.items():
        if results.headline(label) != "r1":
            continue
        for group, what in (("tokens", "CLIP tokens of the text"), ("sentences", "sentences of the text")):
            if len(measured[0].by[group]) == 1:
                # A single group equals the headline metric.
                continue
            figure: Figure = plots.by_group(measured, group, "r1", "R@1")
            caption = f"{label}: by {what}; a picture is grouped by its longest text. "
            caption += f"Groups of under {plots.JOINED} queries are not joined."
            yield Chart("lengths", f"{_slug(label)}-by-{group}", caption, figure)


def _training(found: Results) -> Iterator[Chart]:
    written = {model: paths.metrics_dir(model) / paths.CURVE for model in found.models}
    curves = {model: plots.read_curve(path) for model, path in written.items() if path.exists()}
    trained = {model: curve for model, curve in curves.items() if curve["step"]}
    if trained:
        yield Chart("training", "loss", "Loss terms, means over the last steps.", plots.loss_curves(trained))
    folder = paths.metrics_dir(paths.MIXED)
    if paths.MIXED in found.models and (folder / paths.MIX_CURVE).exists():
        chosen = json.loads((folder / paths.MIX).read_text(encoding="utf-8"))["alpha"]
        caption = "Weights between zero-shot's and the trained model's: mean of R@1, 5 and 10 in validation."
        figure = plots.mixture(plots.read_curve(folder / paths.MIX_CURVE), chosen)
        yield Chart("training", "mixture", caption, figure)


def _similarities(mined: dict[str, dict[str, Any]]) -> Iterator[Chart]:
    for split, summaries in mined.items():
        found = summaries["pairs"]["similarity"]
        filled = [number for number, count in enumerate(found["counts"]) if count]
        if filled:
            first, last = filled[0], filled[-1] + 1
            figure = plots.histogram(found["edges"][first : last + 1], found["counts"][first:last], "cosine")
            caption = f"{split}: cosine between sentence and region."
            yield Chart("mining", f"similarity-{split}", caption, figure)


def _slug(label: str) -> str:
    """A label as a file name."""
    return label.replace("/", "-")
