"""The model card of an export: use, limits, data and licence, measured metrics, lineage."""

import json
from pathlib import Path
from typing import Any

from goal import weights
from goal.config import drawn, paths
from goal.datasets import released
from goal.errors import UserError
from goal.evaluation import results
from goal.evaluation.galleries import DIRECTIONS
from goal.evaluation.results import Result
from goal.model import architectures
from goal.model.network import Spec
from goal.reporting import templates
from goal.runtime import files
from goal.tracking import provenance

FILE = "README.md"
# The model.pretrained that the project ships.
SHIPPED = "embedded"
# The largest difference allowed between an exported tower's unit vectors and the network's, per coordinate.
TOLERANCE = 1e-4


def write(path: Path, spec: Spec, library: str, folder: Path) -> None:
    """Write the README.md of an export of the weights at `path`."""
    file, digest = weights.file_of(path), weights.digest(path)
    made = _made(file.with_name(paths.CARD), digest)
    content = templates.render(
        "model_card.md",
        name=f"{made.get('name', file.parent.name or spec.name)} ({spec.name})",
        spec=spec,
        library=library,
        made=f"Fine-tuned on {made['data']} by `goal train {made['name']}`." if "data" in made else "",
        small=spec.name == architectures.SCENES,
        free=made.get("pretrained") == SHIPPED and made.get("source", drawn.SOURCE) == drawn.SOURCE,
        data=_data(made),
        metrics=[row for one in _measured(file, digest) for row in _rows(one)],
        lineage=_lineage(made, digest),
        tolerance=f"{TOLERANCE:g}",
    )
    files.write_text(folder / FILE, content)


def _made(path: Path, digest: str) -> dict[str, Any]:
    """The card.json at `path`, how the weights were made; empty if there is none for these weights."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return made if made["sha256"] == digest else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; fix or remove it") from error


def _data(made: dict[str, Any]) -> list[str]:
    if not made:
        return ["Training data: not known here; these weights have no card.json."]
    pretrained = made.get("pretrained") or "not known here"
    terms = "shipped with this project, Apache-2.0" if pretrained == SHIPPED else "under their own licence"
    lines = [f"Pretrained weights: {pretrained}, {terms}."]
    if "data" in made:
        lines.append(f"Training data: {made['data']}, {_licence(made.get('source', ''))}.")
    return lines


def _licence(source: str) -> str:
    if source == drawn.SOURCE:
        return "drawn by the project itself, Apache-2.0"
    if source in released.RELEASES:
        return released.RELEASES[source].licence
    return "under the licence of the owners of its pictures and captions"


def _measured(file: Path, digest: str) -> list[Result]:
    """The results of exactly these weights: in metrics/, or fetched with a registered version."""
    folders = [*map(paths.metrics_dir, paths.MODELS), file.with_name(results.FETCHED)]
    found = {}
    for one in (one for folder in folders for one in results.in_folder(folder)):
        if one.digest == digest:
            found.setdefault((one.protocol["data_set"], one.benchmark), one)
    return list(found.values())


def _rows(result: Result) -> list[dict[str, Any]]:
    protocol = result.protocol
    where = {
        "benchmark": f"{protocol['data_set']}/{result.benchmark}",
        "pictures": protocol["images"],
        "texts": protocol["texts"],
    }
    wanted = [f"{direction}_{results.HEADLINE[result.benchmark]}" for direction in DIRECTIONS]
    return [where | {"metric": name} | result.metrics[name] for name in wanted]


def _lineage(made: dict[str, Any], digest: str) -> dict[str, Any]:
    """Where the weights come from, with a label for each fact that is known."""
    parents = [f"{one['path']}, sha256 {one['sha256']}" for one in made.get("parents", [])]
    params = provenance.flatten(made.get("params", {}))
    code = provenance.code()
    known = {
        "sha256 of the weights": digest,
        "made from": "; ".join(parents) or made.get("pretrained"),
        "alpha of the mixture": made.get("alpha"),
        "seed": made.get("seed"),
        "steps": made.get("steps"),
        "parameters": ", ".join(f"{key} {value}" for key, value in params.items()) or None,
        "exported at commit": code.commit + (" with changes" if code.changed else ""),
    }
    return {key: value for key, value in known.items() if value is not None}
