"""The model card of an export: what the model is for, what it was made from, and what was measured."""

import importlib
import json
from pathlib import Path
from typing import Any, get_args

from goal import config, files, weights
from goal.errors import UserError
from goal.evaluation import results
from goal.evaluation.results import Result
from goal.model import architectures
from goal.model.network import Spec
from goal.record import provenance
from goal.reporting import templates

FILE = "README.md"
EMBEDDED = "scenes"
# Most by which a coordinate of an exported tower's unit vectors may differ from the network's.
TOLERANCE = 1e-4


def write(path: Path, spec: Spec, library: str, folder: Path) -> None:
    """Write the README.md of an export; `path` is where its weights come from."""
    file = weights.file_of(path)
    made = _made(file.with_name(weights.CARD))
    digest = weights.digest(path)
    data_set = made.get("data", "")
    embedded = spec.name == architectures.SCENES
    content = templates.render(
        "model_card.md",
        name=f"{made.get('name', file.parent.name or spec.name)} ({spec.name})",
        spec=spec,
        library=library,
        made=f"Fine-tuned on {data_set} with GOAL (CVPR 2025)." if data_set else "",
        embedded=embedded,
        free=embedded and data_set in ("", EMBEDDED),
        data=_data(data_set, embedded),
        metrics=[line for one in _measured(digest) for line in _lines(one)],
        lineage=_lineage(made, digest),
        tolerance=f"{TOLERANCE:g}",
    )
    files.write_text(folder / FILE, content)


def _made(path: Path) -> dict[str, Any]:
    """What the training wrote of itself; empty for weights from elsewhere."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; mend or remove it") from error


def _data(data_set: str, embedded: bool) -> list[str]:
    start = "the network that the project ships, Apache-2.0" if embedded else "under its own licence"
    if not data_set:
        return ["Training data: not known here; these weights came without a card.json."]
    return [f"Training data: {data_set}, {_licence(data_set)}.", f"Base model: {start}."]


def _licence(data_set: str) -> str:
    if data_set == EMBEDDED:
        return "drawn by the project itself, Apache-2.0"
    if data_set in get_args(config.DATA_SOURCES):
        module = importlib.import_module(f"goal.datasets.{data_set}")
        if hasattr(module, "RELEASE"):
            return module.RELEASE.licence
    return "the licence of whoever owns its pictures and captions"


def _measured(digest: str) -> list[Result]:
    """The results of these very weights."""
    names = results.evaluated()
    found = results.load(names, mixed=True).benchmarks if names else {}
    return [one for measured in found.values() for one in measured if one.digest == digest]


def _lines(result: Result) -> list[dict[str, Any]]:
    protocol = result.protocol
    where = {
        "benchmark": f"{protocol['data_set']}/{result.benchmark}",
        "pictures": protocol["images"],
        "texts": protocol["texts"],
    }
    wanted = [f"{direction}_{results.HEADLINE[result.benchmark]}" for direction in results.DIRECTIONS]
    return [where | {"metric": name} | result.metrics[name] for name in wanted]


def _lineage(made: dict[str, Any], digest: str) -> dict[str, Any]:
    """Digests and settings, in words."""
    parent = made.get("parent", {})
    params = provenance.flatten(made.get("params", {}))
    code = provenance.code()
    known = {
        "sha256 of the weights": digest,
        "started from": f"{parent['path']}, sha256 {parent['sha256']}" if parent else made.get("pretrained"),
        "seed": made.get("seed"),
        "steps": made.get("steps"),
        "parameters": ", ".join(f"{key} {value}" for key, value in params.items()) or None,
        "exported at commit": code.commit + (" with changes" if code.changed else ""),
    }
    return {key: value for key, value in known.items() if value is not None}
