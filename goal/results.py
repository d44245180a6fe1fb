"""Result files of the evaluate stage, read back; numbers of different protocols do not mix unnoticed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goal import layout
from goal.errors import UserError
from goal.galleries import BENCHMARKS

# The metric of each benchmark that stands in the headline table.
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
    """The results of some models by benchmark, and the reasons of the benchmarks that are missing."""

    models: tuple[str, ...]
    benchmarks: dict[str, list[Result]]
    missing: dict[str, str]


def evaluated() -> tuple[str, ...]:
    """The models that have results, in the order of the pipeline."""
    return tuple(name for name in layout.MODELS if _file(name, BENCHMARKS[0]).exists())


def load(models: Sequence[str], mixed: bool = False) -> Results:
    """Read the results of `models`.

    Raises UserError for a model without results and, unless `mixed`, for results of different protocols; with
    `mixed` these are marked in `Result.differs`.
    """
    if not models:
        raise UserError("metrics: no evaluated model yet; `dvc repro` makes them all")
    found: dict[str, list[Result]] = {}
    missing: dict[str, str] = {}
    for benchmark in BENCHMARKS:
        for model in models:
            content = read(_file(model, benchmark))
            if "missing" in content:
                missing[benchmark] = content["missing"]
            else:
                found.setdefault(benchmark, []).append(_result(content))
    compared = {name: _compare(results, mixed) for name, results in found.items()}
    return Results(tuple(models), compared, {name: why for name, why in missing.items() if name not in found})


def read(path: Path) -> dict[str, Any]:
    """A JSON file of results; raises UserError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; `dvc repro evaluate` makes it") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a result: {error}; `dvc repro evaluate` makes it anew") from error


def _file(model: str, benchmark: str) -> Path:
    return layout.metrics_dir(model) / "details" / f"{benchmark}.json"


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


def _compare(results: list[Result], mixed: bool) -> list[Result]:
    first = results[0]
    marked = []
    for one in results:
        fields = sorted(first.protocol.keys() | one.protocol.keys())
        differs = tuple(name for name in fields if one.protocol.get(name) != first.protocol.get(name))
        if differs and not mixed:
            ours, theirs = (result.protocol.get(differs[0]) for result in (one, first))
            raise UserError(
                f"{_file(one.model, one.benchmark)}: {differs[0]} is {ours!r}, for {first.model} {theirs!r}; "
                "evaluate both alike, or `goal table --mixed` to see them marked"
            )
        marked.append(Result(**{**vars(one), "differs": differs}))
    return marked
