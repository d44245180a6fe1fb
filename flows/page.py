"""What the page of a flow run in Prefect shows: tables, figures, and links to its result in MLflow."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from goal import config
from goal.errors import UserError

# Figures of a result: the file, the artefact's key, what it shows.
FIGURES = (
    ("reports/pictures/loss.png", "loss-curve", "Terms of the loss of every training"),
    ("pairs/contact-sheet.png", "contact-sheet", "Sentences and the regions that were found for them"),
)


@contextmanager
def _best_effort() -> Iterator[None]:
    """If Prefect's server is down, log it and go on: a run does not fail, nor wait long, for its page."""
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 2}):
            yield
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("missing on the run's page: %s: %s", type(error).__name__, error)


@_best_effort()
def tag(*names: str) -> None:
    """Give the flow run more tags; Prefect's page filters and finds runs by them."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.get_id(), tags=[*flow_run.get_tags(), *names])


class Progress:
    """A progress bar: how many of the stages are done."""

    def __init__(self, stages: int) -> None:
        self._stages, self._done, self._bar = stages, 0, None
        with _best_effort():
            self._bar = create_progress_artifact(0.0, key="stages", description=f"Of {stages} stages")

    def step(self) -> None:
        """One more stage is done."""
        self._done += 1
        with _best_effort():
            if self._bar is not None:
                update_progress_artifact(self._bar, 100.0 * self._done / self._stages)


@_best_effort()
def show(root: Path, branch: str) -> None:
    """Show the results in the checkout on the run's page; what does not exist is left out."""
    _table(root / "reports" / "table.md", branch)
    _mined(root / "pairs", branch)
    for file, key, words in FIGURES:
        if (root / file).exists():
            # As a data URI: the page needs no other server to show it.
            data = base64.b64encode((root / file).read_bytes()).decode()
            create_image_artifact(f"data:image/png;base64,{data}", key=key, description=words)
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        try:
            _links(root)
        except UserError as error:
            get_run_logger().warning("no links to MLflow: %s", error)


@_best_effort()
def gates(lines: list[str]) -> None:
    """Show what `goal promote` printed."""
    table = "\n".join(lines)
    create_markdown_artifact(f"```\n{table}\n```", key="gates", description="Every gate of the promotion")


def _table(file: Path, branch: str) -> None:
    if file.exists():
        text = f"Result: branch `{branch}`\n\n{file.read_text(encoding='utf-8')}"
        create_markdown_artifact(text, key="benchmark-table", description="Every model on every benchmark")


def _mined(folder: Path, branch: str) -> None:
    found = sorted(folder.glob("*/summary.json"))
    if found:
        text = "\n\n".join([f"Result: branch `{branch}`", *map(_counts, found)])
        create_markdown_artifact(text, key="mined-pairs", description="Sentence-region pairs of each split")


def _counts(file: Path) -> str:
    facts = json.loads(file.read_text(encoding="utf-8"))
    rows = [f"| {name} | {value} |" for name, value in facts.items() if isinstance(value, int | float | str)]
    return "\n".join([f"| {file.parent.name} | |", "|---|---|", *rows])


def _links(root: Path) -> None:
    """Link the experiment and, if the flow registered a model, its version and the run that trained it."""
    from goal.tracking import mlflow_store, registry

    with mlflow_store.answering():
        client = mlflow_store.connect()
        experiment = mlflow_store.experiment_id(client, config.load(root / "params.yaml").tracking.experiment)
        links = {"mlflow-runs": (f"experiments/{experiment}/runs", "All runs of the experiment")}
        file = root / "metrics" / "registered.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"registered": False}
        version = registry.existing(client, facts["name"], facts["digest"]) if facts["registered"] else None
    if version is not None:
        name, number = version.name, version.version
        links["mlflow-version"] = (f"models/{name}/versions/{number}", f"{name} version {number}")
        if version.run_id:
            run = f"experiments/{experiment}/runs/{version.run_id}"
            links["mlflow-run"] = (run, f"The training of version {number}")
    # MLFLOW_PAGES: MLflow's address for a browser, if the worker uses another one.
    pages = os.environ.get("MLFLOW_PAGES") or mlflow_store.address()
    for key, (place, words) in links.items():
        # Else MLflow opens its pages for language models.
        link = f"{pages}/#/{place}?workflowType=machine_learning"
        create_link_artifact(link, words, key=key, description=f"{words}, in MLflow")
