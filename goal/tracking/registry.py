"""The registered model as MLflow keeps it: its versions by alias, number and weights, and their files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from goal.tracking.mlflow_store import GONE, unless

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
EVALUATION = "evaluation"
# In that folder: what is known of the version, by name. Its tags are the few facts that people read.
FACTS = "facts.json"


def existing(client: "MlflowClient", registered: str, digest: str) -> "ModelVersion | None":
    """The newest version with these weights."""
    found = client.search_model_versions(f"name = '{registered}' and tags.`goal.model` = '{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


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


def tags(client: "MlflowClient", registered: str) -> dict[str, str]:
    """The tags of the registered model itself; empty where there is none."""
    with unless(GONE):
        return client.get_registered_model(registered).tags
    return {}


def run_status(client: "MlflowClient", version: "ModelVersion") -> str | None:
    """The state of the run that a version came from."""
    if not version.run_id:
        return None
    with unless(GONE):
        return client.get_run(version.run_id).info.status
    return None


def facts(version: "ModelVersion", folder: Path) -> dict[str, str]:
    """What is known of a version whose evaluation lies in `folder`; older versions have it in their tags."""
    file = folder / FACTS
    return (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}) | version.tags


def fetch(client: "MlflowClient", version: "ModelVersion", folder: Path, what: str = EVALUATION) -> Path:
    """Download a part of a version, else its evaluation (details/ and ranks/), below `folder`."""
    from mlflow.artifacts import download_artifacts

    folder.mkdir(parents=True, exist_ok=True)
    where = f"{version.source}/{what}"
    return Path(download_artifacts(where, dst_path=str(folder), tracking_uri=client.tracking_uri))
