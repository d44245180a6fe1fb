"""What the page says of the data, of mining, and of where everything comes from."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from goal.config import PARAMS_FILE, paths
from goal.evaluation.results import Results
from goal.tracking import provenance

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow", "nltk", "dvc", "mlflow")


def data(data_set: str) -> dict[str, Any]:
    """data/<set>/summary.json; empty where there is none."""
    return _json(paths.data_dir(data_set) / "summary.json")


def mining(splits: tuple[str, ...] = ("train", "val", "test")) -> dict[str, dict[str, Any]]:
    """The summaries of regions and pairs of every split that was mined."""
    found = {}
    for split in splits:
        pairs = _json(paths.pairs_dir(split) / "summary.json")
        if pairs:
            found[split] = {"regions": _json(paths.regions_dir(split) / "summary.json"), "pairs": pairs}
    return found


def origin(results: Results, experiment: str) -> dict[str, Any]:
    """Commit, digests of data and models, versions, parameters, and how to find the runs in MLflow.

    experiment: its id on the tracking server; empty where none answers.
    """
    code = provenance.code()
    digests = {result.model: result.digest for found in results.benchmarks.values() for result in found}
    # Its address for a browser, where that is not the one that a worker uses.
    server = _server(os.environ.get("MLFLOW_PAGES") or os.environ.get("MLFLOW_TRACKING_URI", ""))
    # Else MLflow opens its pages for language models.
    page = f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&searchFilter="
    runs = page if server and experiment else ""
    inputs = provenance.upstream(provenance.lock(), [paths.metrics_dir(name) for name in digests])
    outs = {path: md5 for stage in inputs.values() for path, md5 in stage.outs.items()}
    versions = provenance.packages()
    return {
        "commit": code.commit,
        "changed": code.changed,
        "models": {
            model: {"digest": digest, "runs": runs and runs + quote(f"tags.`goal.model` = '{digest}'")}
            for model, digest in digests.items()
        },
        "outs": dict(sorted(outs.items())),
        "versions": {name: versions[name] for name in PACKAGES if name in versions},
        "params": PARAMS_FILE.read_text(encoding="utf-8") if PARAMS_FILE.exists() else "",
        "mlflow": server,
    }


def _server(address: str) -> str:
    """The tracking server's address without user and password; empty where there is no server."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}".rstrip("/")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
