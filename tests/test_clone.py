"""A clone with its results from git and DVC's cache registers the model in its own MLflow store."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from goal.runtime import files
from tests import registered
from tests.imports import ROOT

MODEL, NUMBERS = "models/stage2", "metrics/stage2"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished project, committed to git: weights and metrics in DVC's cache, the model registered."""
    root = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        registered.make(root, patch)
        registered.train(1)
        Path("dvc.lock").unlink()
        stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["register"]
        Path("dvc.yaml").write_text(
            yaml.safe_dump({"stages": {"register": stage | {"deps": [MODEL, NUMBERS]}}})
        )
        values = registered.params("cloned").model_dump(by_alias=True)
        Path("params.yaml").write_text(yaml.safe_dump(values))
        Path(".gitignore").write_text("mlflow.db*\nmlartifacts\nwork\ndata\npairs\nmodels/zero-shot\n")
        run(root, "dvc", "init", "--quiet")
        run(root, "dvc", "add", "--quiet", MODEL, NUMBERS)
        assert "version 1 of cloned" in run(root, "dvc", "repro")
        run(root, "git", "add", "--all")
        run(root, "git", "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "-qm", "finished")
        yield root


def run(folder: Path, *command: str, **environment: str) -> str:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(ROOT), **environment}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def challenger(store: Path) -> str:
    """The digest of the weights of the challenger in an MLflow store."""
    client = MlflowClient(f"sqlite:///{store}", f"sqlite:///{store}")
    return client.get_model_version_by_alias("cloned", "challenger").tags["goal.model"]


def test_a_clone_and_another_store_get_the_version_and_git_stays_clean(origin: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(clone))
    run(clone, "dvc", "config", "--local", "cache.dir", str(origin / ".dvc" / "cache"))
    run(clone, "dvc", "checkout", "--quiet")
    digest = files.digest(clone / MODEL / "model.safetensors")
    run(clone, "dvc", "repro")
    assert challenger(clone / "mlflow.db") == digest
    run(clone, "dvc", "repro", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/other.db")
    assert challenger(tmp_path / "other.db") == digest
    assert run(clone, "git", "status", "--porcelain") == ""
