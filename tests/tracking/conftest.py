"""A project in a folder of its own, with a store of MLflow."""

import shutil
from pathlib import Path

import pytest

from goal.tracking import mlflow_store
from tests.imports import ROOT


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables, made once: they take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        mlflow_store.connect()
    return path


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in the current folder, before its first training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name, content in {
        "data/scenes/train.parquet": "rows",
        "data/scenes/val.parquet": "more rows",
        "models/base/model.safetensors": "first weights",
        "pairs/train/shard-00000.parquet": "pairs",
        "pairs/contact-sheet.png": "picture",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path
