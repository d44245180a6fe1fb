"""Where MLflow's pages show what the record holds of this project."""

import logging

from goal.config import Params
from goal.tracking import mlflow_runs
from goal.tracking.recorder import Refused, Unreachable

log = logging.getLogger(__name__)


def experiment(params: Params) -> str:
    """The id of the experiment on the tracking server; empty where tracking is off or no server answers."""
    if not params.tracking.enabled or not mlflow_runs.uri().startswith("http"):
        return ""
    mlflow_runs.prepare(mlflow_runs.IMPATIENT)
    try:
        with mlflow_runs.answering():
            return mlflow_runs.experiment_id(
                mlflow_runs.connect(mlflow_runs.uri()), params.tracking.experiment
            )
    except (Unreachable, Refused) as error:
        log.warning("%s: %s; the report has no links to runs", mlflow_runs.address(), error)
        return ""
