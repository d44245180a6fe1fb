"""Trainings as the record sees them, and what MLflow then holds."""

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from goal.config import Params, paths
from goal.errors import Interrupted
from goal.tracking import mlflow_store
from goal.tracking import runs as tracking


def train(params: Params, steps: range, weights: str = "trained", name: str = "stage1") -> None:
    """What goal.stages.train does to the record."""
    with tracking.training(params, name) as tracker:
        for step in steps:
            tracker.log_metrics({"loss/total": 1 / step, "lr": 0.1}, step)
        curve = paths.metrics_dir(name) / "loss.csv"
        curve.parent.mkdir(parents=True, exist_ok=True)
        curve.write_text("step,lr,total\n1,0.1,1.0\n2,0.1,0.5\n")
        paths.model_dir(name).mkdir(parents=True, exist_ok=True)
        (paths.model_dir(name) / "model.safetensors").write_text(weights)


def interrupted(params: Params, steps: range) -> None:
    def stopped() -> None:
        with tracking.training(params, "stage1") as tracker:
            for step in steps:
                tracker.log_metrics({"loss/total": 1 / step}, step)
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        stopped()


def client() -> MlflowClient:
    return MlflowClient(mlflow_store.uri())


def runs() -> list[Run]:
    experiment = client().get_experiment_by_name("goal")
    if experiment is None:
        return []
    return client().search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def steps_of(run: Run, key: str = "loss/total") -> list[int]:
    return [metric.step for metric in client().get_metric_history(run.info.run_id, key)]


def artifacts(run: Run, folder: str | None = None) -> set[str]:
    return {found.path for found in client().list_artifacts(run.info.run_id, folder)}
