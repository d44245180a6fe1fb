"""The registered model as MLflow keeps it: its versions by alias, number and weights, and their files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from goal.config import paths
from goal.errors import Unavailable, UserError
from goal.tracking import mlflow_runs
from goal.tracking.recorder import Barred, Refused, Unreachable, deliver_leftovers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
# A server that is down is reported after some seconds, not after MLflow's minutes.
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
EVALUATION = "evaluation"
ALREADY = {"RESOURCE_ALREADY_EXISTS"}
GONE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """MLflow's failures as errors for people."""
    try:
        mlflow_runs.prepare(PATIENT)
        with mlflow_runs.answering():
            yield
    except (Refused, Barred) as error:
        raise UserError(f"{mlflow_runs.address()}: {error}") from error
    except Unreachable as error:
        raise Unavailable(f"{mlflow_runs.address()}: {error}") from error


def connect() -> "MlflowClient":
    """A client, after what earlier trainings could not deliver is delivered."""
    deliver_leftovers(paths.work_dir("tracking"), mlflow_runs.MlflowStore(mlflow_runs.uri()))
    return mlflow_runs.connect(mlflow_runs.uri())


def existing(client: "MlflowClient", registered: str, digest: str) -> "ModelVersion | None":
    """The newest version with these weights."""
    found = client.search_model_versions(f"name = '{registered}' and tags.`goal.model` = '{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


@contextlib.contextmanager
def unless(codes: set[str]) -> Iterator[None]:
    """Let these answers of MLflow pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def by_alias(client: "MlflowClient", registered: str, alias: str) -> "ModelVersion | None":
    """The version that an alias names."""
    with unless(GONE):
        return client.get_model_version_by_alias(registered, alias)
    return None


def by_number(client: "MlflowClient", registered: str, number: int) -> "ModelVersion | None":
    """The version of a number."""
    with unless(GONE):
        return client.get_model_version(registered, str(number))
    return None


def run_status(client: "MlflowClient", version: "ModelVersion") -> str | None:
    """The state of the run that a version came from."""
    if not version.run_id:
        return None
    with unless(GONE):
        return client.get_run(version.run_id).info.status
    return None


def fetch(client: "MlflowClient", version: "ModelVersion", folder: Path, what: str = EVALUATION) -> Path:
    """Download a part of a version, else its evaluation (details/ and ranks/), below `folder`."""
    from mlflow.artifacts import download_artifacts

    folder.mkdir(parents=True, exist_ok=True)
    where = f"{version.source}/{what}"
    return Path(download_artifacts(where, dst_path=str(folder), tracking_uri=client.tracking_uri))


def registered_model(client: "MlflowClient", name: str) -> "RegisteredModel | None":
    """A registered model by name."""
    with unless(GONE):
        return client.get_registered_model(name)
    return None
