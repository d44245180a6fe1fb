"""The page of the report: results and figures put into one HTML file that needs no network."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from goal.evaluation import table
from goal.evaluation.compare import Line
from goal.evaluation.results import Results
from goal.reporting import plots, templates
from goal.reporting.examples import PairedComparison

SECTIONS = {
    "benchmarks": "Benchmarks",
    "lengths": "Recall by length",
    "training": "Training",
    "mining": "Data and mining",
    "pairs": "Mined pairs",
    "queries": "Won and lost",
    "grounding": "Grounding",
    "origin": "Provenance",
}


@dataclass(frozen=True)
class Chart:
    """A figure of a section of the page; `name` is also that of its picture file."""

    section: str
    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Content:
    """What the page shows beside the figures; empty parts are left out."""

    comparisons: dict[str, list[Line]]  # by the model that `after` is compared with
    leaders: dict[tuple[str, str], str]  # compare.leaders
    data: dict[str, Any]
    mining: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]
    queries: PairedComparison | None
    before: str
    after: str
    grounded: list[dict[str, Any]]
    origin: dict[str, Any]


def render(data_set: str, results: Results, charts: Sequence[Chart], content: Content) -> str:
    """The page; every text from data, file names and captions is escaped."""
    figures: dict[str, list[dict[str, str]]] = defaultdict(list)
    for chart in charts:
        figures[chart.section].append({"svg": Markup(plots.svg(chart.figure)), "caption": chart.caption})
    optional = {"mining": content.data or content.mining, "pairs": content.pairs}
    optional |= {"queries": content.queries, "grounding": content.grounded}
    present = {"benchmarks", "origin", *figures, *(name for name, part in optional.items() if part)}
    return templates.render(
        "report.html",
        data_set=data_set,
        sections={name: title for name, title in SECTIONS.items() if name in present},
        titles=[title for *_, title in table.columns(results)],
        rows=_rows(results, content.leaders),
        paired=_paired(results, content.comparisons),
        framed=any(sentence["box"] for one in content.grounded for sentence in one["sentences"]),
        notes=table.notes(results),
        others=table.peers(results)[1],
        figures={name: figures[name] for name in SECTIONS},
        content=content,
    )


def _rows(results: Results, leaders: Mapping[tuple[str, str], str]) -> list[dict]:
    rows = []
    for model in results.models:
        cells = []
        for label, metric, _ in table.columns(results):
            result = results.of(model, label)
            found = result.metrics[metric] if result else None
            leads = leaders.get((label, metric)) == model
            cells.append(_cell(found, bool(result and result.differs), leads))
        rows.append({"name": model, "source": "", "cells": cells})
    rows += [{"name": name, "source": "", "cells": _plain(row)} for name, *row in table.references(results)]
    for label, peer in table.peers(results)[0]:
        numbers = _plain(table.peer_cells(results, label, peer))
        rows.append({"name": peer.setting, "source": peer.source, "cells": numbers})
    return rows


def _plain(numbers: Sequence[str]) -> list[dict]:
    return [{"mean": number, "interval": "", "best": False} for number in numbers]


def _paired(results: Results, comparisons: Mapping[str, Sequence[Line]]) -> dict[str, list[Line | None]]:
    """The differences of each metric, one column per model; None where the two were not measured alike."""
    lines = {
        (other, line.benchmark, line.metric): line for other, found in comparisons.items() for line in found
    }
    rows = {
        title: [lines.get((other, benchmark, metric)) for other in comparisons]
        for benchmark, metric, title in table.columns(results)
    }
    return {title: found for title, found in rows.items() if any(found)}


def _cell(found: dict[str, float] | None, differs: bool, best: bool) -> dict:
    if found is None:
        return {"mean": "-", "interval": "", "best": False}
    return {
        "mean": f"{found['mean']:.1f}{table.MARK if differs else ''}",
        "interval": f"{found['low']:.1f} to {found['high']:.1f}",
        "best": best,
    }
