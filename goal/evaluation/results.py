"""Read the result files of the evaluate stage.

Results of different protocols, or of different weights of one model, are refused or marked.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from goal.config import paths
from goal.errors import UserError
from goal.evaluation.galleries import BENCHMARKS

# The headline metric of each benchmark. A label here is the name of a benchmark or, for another data set than
# the pipeline's own, <data set>/<name>.
HEADLINE = {"test": "r1", "short": "r1", "twins": "accuracy", "joint": "map10"}
# The folder beside the fetched weights of a registered model that holds the results of its version.
FETCHED = "evaluation"
# In `Result.differs`: measured on other weights than the model's first result.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Result:
    """One model on one benchmark, in percent; `differs` names what is not as in the first model's result."""

    model: str
    network: str
    digest: str  # sha256 of the weights
    benchmark: str
    protocol: dict[str, str | int]
    metrics: dict[str, dict[str, float]]
    by: dict[str, Any]
    source: str  # of the pictures, as data.source has it; empty if an older evaluation did not write it
    unanswerable: dict[str, int]  # Gallery.unanswerable
    differs: tuple[str, ...] = ()

    @property
    def differing(self) -> str:
        """The fields of `differs` with their values."""
        known = self.protocol | {WEIGHTS: f"sha256 {self.digest[:12]}"}
        return ", ".join(f"{name} {known.get(name)}" for name in self.differs)


@dataclass(frozen=True)
class Results:
    """The results of some models by label, and the reason for each missing benchmark."""

    models: tuple[str, ...]
    benchmarks: dict[str, list[Result]]
    missing: dict[str, str]

    def of(self, model: str, label: str) -> Result | None:
        """A model's result on a benchmark; None if it was not measured."""
        return next((one for one in self.benchmarks.get(label, []) if one.model == model), None)


def headline(label: str) -> str:
    """The headline metric of a benchmark, given its label."""
    return HEADLINE[label.rpartition("/")[2]]


def evaluated() -> tuple[str, ...]:
    """The models with results on any data set, in the order of the pipeline."""
    return tuple(name for name in paths.MODELS if _data_sets(name))


def load(models: Sequence[str], mixed: bool = False) -> Results:
    """Read the results of `models` on all data sets.

    Raises UserError for a model without results. Results of different protocols, and of weights that a model
    no longer has, also raise UserError; with `mixed` they are marked in `Result.differs` instead.
    """
    if not models:
        raise UserError("metrics: no evaluated model yet; run `dvc repro`")
    for model in models:
        if model not in paths.MODELS:
            raise UserError(f"{model}: no such model; choose one of {', '.join(paths.MODELS)}")
    found: dict[str, list[Result]] = {}
    missing: dict[str, str] = {}
    digests: dict[str, str] = {}
    for model in models:
        for data_set in _data_sets(model) or [""]:
            for label, content in _read_all(model, data_set):
                if "missing" not in content:
                    result = _result(content)
                    digests.setdefault(model, result.digest)
                    found.setdefault(label, []).append(result)
                elif not data_set:
                    missing[label] = content["missing"]
    checked = {label: _checked(label, measured, digests, mixed) for label, measured in found.items()}
    missing = {label: reason for label, reason in missing.items() if label not in found}
    return Results(tuple(models), checked, missing)


def in_folder(folder: Path) -> list[Result]:
    """All results in a model's metrics folder, whatever their weights, the pipeline's own data set first."""
    folders = paths.numbers_folders(folder).values()
    found = [one / "details" / f"{benchmark}.json" for one in folders for benchmark in BENCHMARKS]
    contents = [_read(path, "remove it") for path in found if path.exists()]
    return [_result(content) for content in contents if "missing" not in content]


def details(model: str, label: str) -> Path:
    """The file of a model's result."""
    return _file(model, label, "details", "json")


def ranks(model: str, label: str) -> Path:
    """The file of a model's per-query results."""
    return _file(model, label, "ranks", "parquet")


def command(label: str, *models: str) -> str:
    """The command that measures models on the data set of a benchmark, in backquotes."""
    data_set = label.rpartition("/")[0]
    return f"`goal evaluate {' '.join(models)}" + (f" --on {data_set}`" if data_set else "`")


def _data_sets(model: str) -> list[str]:
    """The data sets that a model was measured on, the pipeline's own, "", first."""
    folders = paths.numbers_folders(paths.metrics_dir(model))
    return [name for name, folder in folders.items() if (folder / "details").is_dir()]


def _read_all(model: str, data_set: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for benchmark in BENCHMARKS:
        label = f"{data_set}/{benchmark}" if data_set else benchmark
        yield label, _read(details(model, label), f"run {command(label, model)}")


def _read(path: Path, fix: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {fix}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a result: {error}; {fix}") from error


def _file(model: str, label: str, folder: str, suffix: str) -> Path:
    data_set, _, benchmark = label.rpartition("/")
    return paths.metrics_dir(model, data_set) / folder / f"{benchmark}.{suffix}"


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
        source=content.get("source", ""),
        unanswerable=content.get("unanswerable", {}),
    )


def _checked(label: str, results: list[Result], digests: Mapping[str, str], mixed: bool) -> list[Result]:
    """The results with `differs` filled in; without `mixed`, UserError if there is anything to fill in."""
    first = results[0]
    marked = []
    for one in results:
        fields = sorted(first.protocol.keys() | one.protocol.keys())
        differs = [name for name in fields if one.protocol.get(name) != first.protocol.get(name)]
        own = digests[one.model]
        if one.digest != own and not mixed:
            raise UserError(
                f"{details(one.model, label)}: measured on other weights (sha256 {one.digest[:12]}) than "
                f"{one.model}'s first result ({own[:12]}); run {command(label, one.model)}, "
                "or `goal table --mixed` to see such results marked"
            )
        if differs and not mixed:
            ours, theirs = (result.protocol.get(differs[0]) for result in (one, first))
            raise UserError(
                f"{details(one.model, label)}: {differs[0]} is {ours!r}, for {first.model} {theirs!r}; "
                "evaluate both in the same way, or run `goal table --mixed` to see such results marked"
            )
        differs += [WEIGHTS] if one.digest != own else []
        marked.append(replace(one, differs=tuple(differs)))
    return marked
