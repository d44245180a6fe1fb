"""A tiny project in which three random networks were evaluated, for tests of tables and of the report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from goal.config import paths
from goal.datasets import manifest
from goal.stages import evaluate, pairs
from goal.stages import regions as stage
from tests import tiny

MODELS = ("zero-shot", "stage2", "global")
HOSTILE = "A boat </p><script>alert(1)</script> \"quoted\" 'too' & {{ 7 * 7 }}. A sail."


def make(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Three models evaluated on test, twins and joint; two of them with a loss curve."""
    tiny.make(root, patch, MODELS)
    rows = manifest.read(Path("data/tiny/test.parquet"))
    twins = manifest.table([tiny.twin(rows[0], rows[1].image, "colour")], manifest.TWINS)
    manifest.write_table(twins, Path("data/tiny/twins.parquet"))
    rows[3] = replace(rows[3], captions=(HOSTILE, rows[3].captions[1]))
    for split in ("train", "test"):
        manifest.write(rows, Path(f"data/tiny/{split}.parquet"))
    stage.run(tiny.params())
    pairs.run(tiny.params())
    evaluate.run(tiny.params(), MODELS)
    for model in MODELS[1:]:
        curve = paths.metrics_dir(model) / "loss.csv"
        curve.write_text("step,lr,global,total\n10,0.1,2.5,3.5\n20,0.0,1.5,2.0\n")


def copy(measured: Path, root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Enter a copy of the project, to change at will."""
    shutil.copytree(measured, root, dirs_exist_ok=True)
    patch.chdir(root)
    patch.delenv("DVC_ROOT", raising=False)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root


def details(model: str, label: str = "test") -> dict:
    """A result file."""
    return json.loads(file(model, label).read_text())


def change(model: str, label: str = "test", network: str = "", **protocol: object) -> None:
    """Let a result say that it is of another protocol, or network."""
    content = details(model, label)
    content["protocol"] |= protocol
    content["model"]["network"] = network or content["model"]["network"]
    file(model, label).write_text(json.dumps(content))


def file(model: str, label: str) -> Path:
    data_set, _, benchmark = label.rpartition("/")
    return Path("metrics", model, *(("on", data_set) if data_set else ()), "details", f"{benchmark}.json")
