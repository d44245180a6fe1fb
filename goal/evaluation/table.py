"""The benchmark table, one row per model, one column per headline metric: Markdown, CSV and terminal."""

import csv
import io
import json
from collections.abc import Iterator, Sequence

from rich.table import Table

from goal.config import drawn, paths
from goal.evaluation import published
from goal.evaluation.galleries import DIRECTIONS
from goal.evaluation.published import Published
from goal.evaluation.results import Result, Results, command, headline

ARROWS = {"text_to_image": "text→image", "image_to_text": "image→text"}
METRICS = {"r1": "R@1", "accuracy": "accuracy", "map10": "mAP@10"}
MARK = "*"
CHANCE = "chance"
# What can be reached without knowing anything, and by who sees colours alone (drawn scenes only).
REFERENCES = (CHANCE, "colours only")
NUMBERS = ("mean", "low", "high", "queries", *REFERENCES)
CSV_COLUMNS = ("model", "benchmark", "metric", *NUMBERS, "differs", "weights")


def columns(results: Results) -> list[tuple[str, str, str]]:
    """(label of the benchmark, metric of the result file, title) of every column."""
    return [
        (label, f"{direction}_{headline(label)}", f"{label} {ARROWS[direction]} {METRICS[headline(label)]}")
        for label in results.benchmarks
        for direction in DIRECTIONS
    ]


def cells(results: Results, model: str, between: str = " ") -> list[str]:
    """The row of a model: each value and its interval, with `between` them; a dash where it has no result."""
    row = []
    for benchmark, metric, _ in columns(results):
        result = results.of(model, benchmark)
        row.append(_cell(result, metric, between) if result else "-")
    return row


def references(results: Results) -> Iterator[list[str]]:
    """The rows of REFERENCES that are known, each with its name first; a dash where a benchmark has none."""
    for name in REFERENCES:
        found = [
            results.benchmarks[label][0].metrics[metric].get(name) for label, metric, _ in columns(results)
        ]
        if any(value is not None for value in found):
            yield [name, *("-" if value is None else f"{value:.1f}" for value in found)]


def notes(results: Results) -> list[str]:
    """What a reader of the table must know: protocols, what the marks mean, what was not measured."""
    lines = [
        "Percent, with the 95 % interval (Wilson's, by picture). Ties count against the model. "
        f"{CHANCE}: galleries ranked at random."
    ]
    for benchmark, found in results.benchmarks.items():
        of = found[0].protocol
        lines.append(
            f"{benchmark}: {of['data_set']}, {of['images']} pictures, {of['texts']} texts; "
            f"view {of['view']} {of['image_size']} px, context {of['context_length']} tokens, "
            f"{of['precision']}, no prompt; split {str(of['split'])[:12]}."
        )
        lines += _limits(benchmark, found)
        lines += [
            f"{MARK} {result.model} on {benchmark} is not comparable with the others: {result.differing}."
            for result in found
            if result.differs
        ]
        absent = [model for model in results.models if results.of(model, benchmark) is None]
        if absent:
            lines.append(f"{benchmark}: not measured for {', '.join(absent)}: {command(benchmark, *absent)}.")
    lines += [f"{benchmark}: not measured: {why}." for benchmark, why in results.missing.items()]
    if views := ", ".join(_views(results.models)):
        lines.append(f"Pictures and crops encoded in each training, at most: {views}.")
    return lines


def _views(models: Sequence[str]) -> Iterator[str]:
    for model in models:
        file = paths.metrics_dir(model) / paths.NUMBERS
        count = json.loads(file.read_text(encoding="utf-8")).get("views") if file.exists() else None
        if count is not None:
            yield f"{model} {count:,}"


def peers(results: Results) -> tuple[list[tuple[str, Published]], list[Published]]:
    """Published numbers with one of our protocols, each with its label; and those with other protocols."""
    same, others = [], []
    for label, found in results.benchmarks.items():
        if label.rpartition("/")[2] == "test":
            of = found[0].protocol
            alike, rest = published.of(str(of["data_set"]), found[0].network, int(of["images"]))
            same += [(label, row) for row in alike]
            others += rest
    return same, others


def peer_cells(results: Results, label: str, row: Published) -> list[str]:
    """The row of a published setting: its two numbers in the columns of their benchmark."""
    numbers = {f"{way}_r1": f"{getattr(row, way):.1f}" for way in DIRECTIONS}
    return [numbers.get(metric, "-") if column == label else "-" for column, metric, _ in columns(results)]


def markdown(results: Results) -> str:
    """The table with published numbers of the same protocol below ours, then the notes."""
    titles = ["model", *(title for *_, title in columns(results))]
    same, others = peers(results)
    rows = [[model, *cells(results, model)] for model in results.models]
    rows += references(results)
    rows += [[f"published: {row.setting}", *peer_cells(results, label, row)] for label, row in same]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes(results))]
    lines += [f"- published: {row.setting}: {row.source}" for _, row in same]
    if others:
        lines.append(f"- {len(others)} published numbers of this data set have other galleries or networks.")
    return "\n".join(lines) + "\n"


def as_csv(results: Results) -> str:
    """Every metric of every benchmark and model, one per line, with protocol and weights."""
    found = [(label, result) for label, group in results.benchmarks.items() for result in group]
    fields = list(found[0][1].protocol) if found else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *fields])
    for label, result in found:
        protocol = [" ".join(result.differs), result.digest, *map(result.protocol.get, fields)]
        for metric, value in result.metrics.items():
            numbers = [value.get(key) for key in NUMBERS]
            writer.writerow([result.model, label, metric, *numbers, *protocol])
    return text.getvalue()


def recall_csv(results: Results) -> str:
    """Recall@k of the benchmark `test`, for plots: model, direction, k, recall."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "direction", "k", "recall"])
    for result in results.benchmarks.get("test", []):
        for metric, value in result.metrics.items():
            direction, k = metric.rsplit("_r", 1)
            writer.writerow([result.model, direction, k, value["mean"]])
    return text.getvalue()


def rich(results: Results) -> Table:
    """The table for a terminal, each interval below its value."""
    table = Table(title="Benchmarks, percent and 95 % interval", title_justify="left")
    table.add_column("model", no_wrap=True)
    for *_, title in columns(results):
        table.add_column(title.replace(" ", "\n"), justify="right", no_wrap=True)
    for model in results.models:
        table.add_row(model, *cells(results, model, between="\n"))
    for row in references(results):
        table.add_row(*row)
    return table


def _cell(result: Result, metric: str, between: str) -> str:
    mean, low, high = (result.metrics[metric][key] for key in ("mean", "low", "high"))
    return f"{mean:.1f}{MARK if result.differs else ''}{between}[{low:.1f}, {high:.1f}]"


def _limits(label: str, found: Sequence[Result]) -> Iterator[str]:
    """Which numbers of a benchmark say less than they seem to."""
    for direction in DIRECTIONS:
        blocked, metric = found[0].unanswerable.get(direction, 0), f"{direction}_{headline(label)}"
        if blocked:
            yield (
                f"{label} {ARROWS[direction]}: copies among the pictures or texts: {blocked} of "
                f"{found[0].metrics[metric]['queries']} queries cannot find the right one first."
            )
        low = [
            one.model for one in found if one.metrics[metric]["low"] <= one.metrics[metric].get(CHANCE, -1)
        ]
        if low:
            yield f"{label} {ARROWS[direction]}: not above chance by its interval: {', '.join(low)}."
    part = next((one.source for one in found if ", limit " in one.source), "")
    if part:
        yield f"{label}: a part of the set ({part}): not comparable with others' numbers."
    if any(drawn.unfit(one.network, one.source) for one in found if one.source):
        yield f"{label}: {drawn.ADVICE}."
