"""Result files of the evaluate stage, read back; numbers of different protocols do not mix unnoticed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goal import layout
from goal.errors import UserError
from goal.evaluation.galleries import BENCHMARKS

# The metric of each benchmark that stands in the headline table. A benchmark of another data set than the
# pipeline's own is labelled <data set>/<benchmark>.
HEADLINE = {"test": "r1", "short": "r1", "twins": "accuracy", "joint": "map10"}
DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Result:
    """One model on one benchmark, in percent; `differs` names protocol fields unlike the first model's."""

    model: str
    network: str
    digest: str
    benchmark: str
    protocol: dict[str, str | int]
    metrics: dict[str, dict[str, float]]
    by: dict[str, Any]
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """The results of some models by label, and the reasons of the benchmarks that are missing."""

    models: tuple[str, ...]
    benchmarks: dict[str, list[Result]]
    missing: dict[str, str]


def headline(label: str) -> str:
    """The headline metric of a benchmark."""
    return HEADLINE[label.rpartition("/")[2]]


def evaluated() -> tuple[str, ...]:
    """The models that have results, in the order of the pipeline."""
    return tuple(name for name in layout.MODELS if details(name, BENCHMARKS[0]).exists())


def load(models: Sequence[str], mixed: bool = False) -> Results:
    """Read the results of `models`, on other data sets too where they were measured.

    Raises UserError for a model without results and, unless `mixed`, for results of different protocols; with
    `mixed` these are marked in `Result.differs`.
    """
    if not models:
        raise UserError("metrics: no evaluated model yet; `dvc repro` makes them all")
    found: dict[str, list[Result]] = {}
    missing: dict[str, str] = {}
    for model in models:
        elsewhere = (path.parent.name for path in layout.metrics_dir(model).glob("on/*/details"))
        for data_set in ("", *sorted(elsewhere)):
            for benchmark in BENCHMARKS:
                label = f"{data_set}/{benchmark}" if data_set else benchmark
                content = read(details(model, label))
                if "missing" not in content:
                    found.setdefault(label, []).append(_result(content))
                elif not data_set:
                    missing[label] = content["missing"]
    compared = {label: _compare(label, measured, mixed) for label, measured in found.items()}
    missing = {label: reason for label, reason in missing.items() if label not in found}
    return Results(tuple(models), compared, missing)


def details(model: str, label: str) -> Path:
    """The result file of a model."""
    return _folder(model, label, "details", "json")


def ranks(model: str, label: str) -> Path:
    """The per-query answers of a model."""
    return _folder(model, label, "ranks", "parquet")


def read(path: Path) -> dict[str, Any]:
    """A JSON file of results; raises UserError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; `dvc repro evaluate` makes it") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a result: {error}; `dvc repro evaluate` makes it anew") from error


def _folder(model: str, label: str, part: str, kind: str) -> Path:
    data_set, _, benchmark = label.rpartition("/")
    return layout.metrics_dir(model, data_set) / part / f"{benchmark}.{kind}"


def _result(content: dict[str, Any]) -> Result:
    model = content["model"]
    return Result(
        model=model["name"],
        network=model["network"],
        digest=model["digest"],
        benchmark=content["benchmark"],
        protocol=content["protocol"],
        metrics=content["metrics"],
        by=content["by"],
    )


def _compare(label: str, results: list[Result], mixed: bool) -> list[Result]:
    first = results[0]
    marked = []
    for one in results:
        fields = sorted(first.protocol.keys() | one.protocol.keys())
        differs = tuple(name for name in fields if one.protocol.get(name) != first.protocol.get(name))
        if differs and not mixed:
            ours, theirs = (result.protocol.get(differs[0]) for result in (one, first))
            raise UserError(
                f"{details(one.model, label)}: {differs[0]} is {ours!r}, for {first.model} {theirs!r}; "
                "evaluate both alike, or `goal table --mixed` to see them marked"
            )
        marked.append(Result(**{**vars(one), "differs": differs}))
    return marked
