"""A tiny project with a trained, measured and recorded model, for the tests of registry and promotion."""

import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from goal import config, weights
from goal.config import Params, paths
from goal.model.network import GoalClip
from goal.stages import evaluate
from goal.tracking import provenance, runs
from tests import tiny

GATES = [{"benchmark": "test", "metric": "text_to_image_r1", "rule": "minimum", "value": 0.0}]


def make(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Enter a project under git whose record is a file of its own."""
    tiny.make(root, patch, ("zero-shot", "stage1"))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("data/tiny/train.parquet").write_text("rows")
    Path("data/tiny/val.parquet").write_text("rows")
    Path("pairs/train").mkdir(parents=True)
    Path("pairs/train/shard-00000.parquet").write_text("pairs")
    commit("first")


def commit(message: str) -> None:
    """A commit of nothing, in a repository made if need be."""
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", message]):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *command], check=True)


def params(registered: str, model: str = "stage2", gates: list[dict] = GATES, **tracked: object) -> Params:
    values = tiny.params().model_dump(by_alias=True)
    values["register"] = {"name": registered, "model": model}
    values["promote"] = {"gates": gates}
    values["tracking"] |= tracked
    return config.parse(values, "test")


def train(seed: int, model: str = "stage2") -> None:
    """A recorded training whose result is a random network, with dvc.lock as `dvc repro` would leave it."""
    values = params("any").model_copy(update={"seed": seed})
    with runs.training(values, model) as tracker:
        tracker.log_metrics({"loss/total": 1.0}, 1)
        torch.manual_seed(seed)
        weights.save(GoalClip(tiny.SPEC), paths.model_dir(model))
        curve = paths.metrics_dir(model) / "loss.csv"
        curve.parent.mkdir(parents=True, exist_ok=True)
        curve.write_text("step,lr,total\n1,0.1,1.0\n")
    lock(model)
    measure(model)


def measure(model: str = "stage2", on: str = "") -> None:
    """What `goal evaluate` does."""
    values = params("any")
    runs.evaluation(values, model, evaluate.run(values, [model], on)[model])


def lock(model: str = "stage2") -> None:
    data, folder = paths.data_dir("tiny"), paths.model_dir(model)
    stages = {
        "data": {"outs": [{"path": str(data), "md5": provenance.md5(data)}]},
        f"train@{model}": {
            "deps": [{"path": str(data), "md5": provenance.md5(data)}],
            "outs": [{"path": str(folder), "md5": provenance.md5(folder)}],
        },
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
