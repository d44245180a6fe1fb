"""The benchmark table: a row a model, a column a headline metric; as Markdown, CSV and in the terminal."""

import csv
import io

from rich.table import Table

from goal import published
from goal.published import Published
from goal.results import DIRECTIONS, HEADLINE, Result, Results

ARROWS = {"text_to_image": "text→image", "image_to_text": "image→text"}
METRICS = {"r1": "R@1", "accuracy": "accuracy", "map10": "mAP@10"}
MARK = "*"
CSV_COLUMNS = ("model", "benchmark", "metric", "mean", "low", "high", "queries", "differs")


def columns(results: Results) -> list[tuple[str, str, str]]:
    """(benchmark, metric of the result file, title) of every column."""
    return [
        (benchmark, f"{direction}_{HEADLINE[benchmark]}", f"{benchmark} {ARROWS[direction]} {title}")
        for benchmark in results.benchmarks
        for direction in DIRECTIONS
        for title in [METRICS[HEADLINE[benchmark]]]
    ]


def cell(result: Result, metric: str) -> str:
    """Mean, 95 % interval, and a mark where the protocol is another than the first model's."""
    found = result.metrics[metric]
    mark = MARK if result.differs else ""
    return f"{found['mean']:.1f} [{found['low']:.1f}, {found['high']:.1f}]{mark}"


def cells(results: Results, model: str) -> list[str]:
    """The row of a model; a dash where it has no result."""
    row = []
    for benchmark, metric, _ in columns(results):
        own = [result for result in results.benchmarks[benchmark] if result.model == model]
        row.append(cell(own[0], metric) if own else "-")
    return row


def notes(results: Results) -> list[str]:
    """What a reader of the table must know: galleries, what the brackets are, marks, missing benchmarks."""
    lines = ["Percent; in brackets the 95 % bootstrap interval. Ties count against the model."]
    for benchmark, found in results.benchmarks.items():
        of = found[0].protocol
        lines.append(
            f"{benchmark}: {of['data_set']}, {of['images']} pictures, {of['texts']} texts; "
            f"view {of['view']} {of['image_size']} px, context {of['context_length']} tokens, "
            f"{of['precision']}, no prompt; split {str(of['split'])[:12]}."
        )
        for result in found:
            if result.differs:
                told = ", ".join(f"{name} {result.protocol.get(name)}" for name in result.differs)
                lines.append(f"{MARK} {result.model} on {benchmark} had another protocol: {told}.")
    lines += [f"{benchmark}: not measured: {why}." for benchmark, why in results.missing.items()]
    return lines


def peers(results: Results) -> tuple[list[Published], list[Published]]:
    """Published numbers of the same protocol as our `test` results, and of other ones."""
    if "test" not in results.benchmarks:
        return [], []
    first = results.benchmarks["test"][0]
    return published.of(str(first.protocol["data_set"]), first.network, int(first.protocol["images"]))


def markdown(results: Results) -> str:
    """The table, published numbers of the same protocol below ours, and the notes."""
    titles = ["model", *(title for *_, title in columns(results))]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += ["| " + " | ".join([model, *cells(results, model)]) + " |" for model in results.models]
    same, others = peers(results)
    for row in same:
        both = [f"{row.text_to_image:.1f}", f"{row.image_to_text:.1f}"]
        rest = ["-"] * (len(titles) - 3)
        lines.append("| " + " | ".join([f"published: {row.setting}", *both, *rest]) + " |")
    lines += ["", *(f"- {note}" for note in notes(results))]
    lines += [f"- published: {row.setting}: {row.source}" for row in same]
    if others:
        lines.append(f"- {len(others)} published numbers of this data set have other galleries or networks.")
    return "\n".join(lines) + "\n"


def as_csv(results: Results) -> str:
    """Every metric of every benchmark and model, one a line, with the protocol."""
    found = [result for group in results.benchmarks.values() for result in group]
    fields = list(found[0].protocol) if found else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *fields])
    for result in found:
        for metric, value in result.metrics.items():
            numbers = [value[key] for key in ("mean", "low", "high", "queries")]
            protocol = [result.protocol.get(field) for field in fields]
            writer.writerow(
                [result.model, result.benchmark, metric, *numbers, " ".join(result.differs), *protocol]
            )
    return text.getvalue()


def recall_csv(results: Results) -> str:
    """Recall@k of the `test` benchmark, for plots: model, direction, k, recall."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "direction", "k", "recall"])
    for result in results.benchmarks.get("test", []):
        for metric, value in result.metrics.items():
            direction, k = metric.rsplit("_r", 1)
            writer.writerow([result.model, direction, k, value["mean"]])
    return text.getvalue()


def rich(results: Results) -> Table:
    """The table for a terminal: the half width of the interval instead of its ends."""
    table = Table(title="Benchmarks, percent ± half the 95 % interval", title_justify="left")
    table.add_column("model", no_wrap=True)
    for *_, title in columns(results):
        table.add_column(title.replace(" ", "\n"), justify="right", no_wrap=True)
    for model in results.models:
        row = []
        for benchmark, metric, _ in columns(results):
            own = [result for result in results.benchmarks[benchmark] if result.model == model]
            row.append(_short(own[0], metric) if own else "-")
        table.add_row(model, *row)
    return table


def _short(result: Result, metric: str) -> str:
    found = result.metrics[metric]
    half = (found["high"] - found["low"]) / 2
    return f"{found['mean']:.1f} ± {half:.1f}{MARK if result.differs else ''}"
