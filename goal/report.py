"""The report stage: every result in tables, pictures and one page that opens offline."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from goal import layout, plots, report_page, results, table, tensorfiles
from goal.report_page import Chart
from goal.results import Results

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)


def run(params: "Params") -> None:
    """Write reports/: table.md, table.csv, recall.csv, pictures/*.png and index.html.

    Raises UserError where a result is missing, or the models were not measured alike.
    """
    found = results.load(results.evaluated())
    folder = layout.reports_dir()
    tensorfiles.write_text(folder / "table.md", table.markdown(found))
    tensorfiles.write_text(folder / "table.csv", table.as_csv(found))
    tensorfiles.write_text(folder / "recall.csv", table.recall_csv(found))
    charts = [*_benchmarks(found, params), *_lengths(found, params), *_training(found)]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for chart in charts:
        plots.png(chart.figure, folder / "pictures" / f"{chart.name}.png")
    tensorfiles.write_text(folder / "index.html", report_page.render(params.data.name, found, charts))
    log.info("open %s", folder / "index.html")


def _benchmarks(found: Results, params: "Params") -> Iterator[Chart]:
    for benchmark, measured in found.benchmarks.items():
        metric = results.HEADLINE[benchmark]
        figure = plots.recall_bars(measured, metric, table.METRICS[metric])
        yield Chart("benchmarks", benchmark, f"{benchmark}: mean and 95 % interval.", figure)
        if benchmark == "twins":
            figure = plots.by_group(measured, "attribute", metric, table.METRICS[metric])
            yield Chart("benchmarks", "twins-by-attribute", "twins: by what differs; chance is 50 %.", figure)


def _lengths(found: Results, params: "Params") -> Iterator[Chart]:
    for benchmark, measured in found.benchmarks.items():
        if results.HEADLINE[benchmark] != "r1":
            continue
        for group, what in (("tokens", "CLIP tokens of the text"), ("sentences", "sentences of the text")):
            figure: Figure = plots.by_group(measured, group, "r1", "R@1")
            caption = f"{benchmark}: by {what}; a picture counts by its longest text."
            yield Chart("lengths", f"{benchmark}-by-{group}", caption, figure)


def _training(found: Results) -> Iterator[Chart]:
    files = {model: layout.metrics_dir(model) / "loss.csv" for model in found.models}
    curves = {model: plots.read_curve(path) for model, path in files.items() if path.exists()}
    trained = {model: curve for model, curve in curves.items() if curve["step"]}
    if trained:
        yield Chart(
            "training", "loss", "Terms of the loss, means of the last steps.", plots.loss_curves(trained)
        )
