"""MLflow's tracking store: where it is, how it fails, and how a record becomes a run in it."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from goal.config import paths
from goal.errors import Unavailable, UserError
from goal.runtime import locks
from goal.tracking.records import Point, Record, Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger("goal.tracking")

SQLITE = "sqlite:///"
# Read by MLflow; what the user has set stays. A server that is down is reported after seconds, not minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
# Besides, for a stage that logs and need not wait long: goal.tracking.sync tries again.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# What they report is reported here in one line, or means nothing to the user.
NOISY = ("alembic", "urllib3", "mlflow.store.db.utils", "mlflow.system_metrics", "mlflow.utils.environment")
# The tag that MLflow's pages show as the description of an experiment or a run.
NOTE = "mlflow.note.content"
ABOUT = (
    "CLIP fine-tuned on long captions. One run per trained model, and one for the untrained base, with its "
    "parameters, loss curve, data and benchmark results."
)
PARAMS_PER_CALL = 100  # MLflow's limit
ALREADY = {"RESOURCE_ALREADY_EXISTS"}
GONE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
NEVER = GONE | {"INVALID_STATE", "ENDPOINT_NOT_FOUND"}
DENIED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
DENIED_FIX = "are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD right, and may they do this?"


class Refused(UserError):
    """The server will never take this."""


def uri() -> str:
    """Where MLflow keeps its record: MLFLOW_TRACKING_URI, else a file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{paths.home() / 'mlflow.db'}"


def address() -> str:
    """The uri for people: without a password."""
    parts = urlsplit(uri())
    return uri().replace(f"{parts.username}:{parts.password}@", "") if parts.password else uri()


def prepare(environment: Mapping[str, str] = {}) -> None:
    """Set what MLflow reads at its import, and import it: later threads and forked loaders find it loaded."""
    for key, value in {**ENVIRONMENT, **environment}.items():
        os.environ.setdefault(key, value)
    import mlflow.system_metrics.system_metrics_monitor
    import mlflow.tracking  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def connect() -> "MlflowClient":
    """A client of the tracking store and the registry.

    A new sqlite store is made by one process at a time: several cold starts would break each other's tables.
    Raises as `answering` does.
    """
    where = uri()
    with answering(), contextlib.ExitStack() as stack:
        from mlflow import MlflowClient

        if where.startswith(SQLITE):
            stack.enter_context(locks.held(Path(where.removeprefix(SQLITE) + ".lock")))
        client = MlflowClient(tracking_uri=where, registry_uri=where)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn every way in which MLflow fails into an error of one line.

    Unavailable where the same may work later, Refused where it never will, UserError where the user must fix
    a password or a disk.
    """
    prepare()
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in DENIED:
            raise UserError(f"{_one_line(error)}: {DENIED_FIX}") from error
        kind = Refused if error.error_code in NEVER else Unavailable
        raise kind(_one_line(error)) from error
    except (RequestException, SQLAlchemyError, ConnectionError, TimeoutError) as error:
        raise Unavailable(_one_line(error)) from error
    except OSError as error:
        raise UserError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    text, password = " ".join(str(error).split()), urlsplit(uri()).password
    return f"{address()}: {text.replace(password, '***') if password else text}"[:250]


@contextlib.contextmanager
def unless(codes: set[str]) -> Iterator[None]:
    """Let these answers of MLflow pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The experiment, made where there is none; artefacts of a store in a file lie beside it."""
    if client.get_experiment_by_name(name) is None:
        local = (paths.home() / "mlartifacts").as_uri() if client.tracking_uri.startswith(SQLITE) else None
        # Another process may make it between the two calls.
        with unless(ALREADY):
            client.create_experiment(name, artifact_location=local, tags={NOTE: ABOUT})
    return client.get_experiment_by_name(name).experiment_id


def find(client: "MlflowClient", experiment: str, tags: Mapping[str, str]) -> "MlflowRun | None":
    """The newest run with these tags."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs = client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"], max_results=1)
    return runs[0] if runs else None


def attach(client: "MlflowClient", record: Record) -> "MlflowRun":
    """MLflow's run of a record: found by its tags, so that it is made once whatever the server confirmed."""
    ours = record.run
    with answering():
        experiment = experiment_id(client, ours["experiment"])
        run = find(client, experiment, ours["find"])
        if run is None:
            run, record.sent = client.create_run(experiment, ours["started"], ours["tags"], ours["name"]), 0
            log.info("tracking: run %s (%s) in %s", run.info.run_id, ours["name"], address())
        if run.data.tags.get("goal.run") == ours["id"]:
            _describe(client, run.info.run_id, ours)
        client.log_inputs(run.info.run_id, [_data(ours)])
        if ours["status"] is None:
            client.update_run(run.info.run_id, status="RUNNING")
    return run


def _describe(client: "MlflowClient", run: str, ours: Run) -> None:
    """Log parameters and texts; the same again changes nothing."""
    from mlflow.entities import Param

    params = [Param(*param) for param in ours["params"].items()]
    for start in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run, params=params[start : start + PARAMS_PER_CALL])
    for path, text in ours["texts"].items():
        client.log_text(run, text, path)


def _data(ours: Run) -> "DatasetInput":
    """The data set of a record; logged again, it stays one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = ours["data"]
    columns = [
        {"name": name, "required": True} | _type(kind) for name, kind in data.get("columns", {}).items()
    ]
    described = Dataset(
        data["name"],
        data["digest"],
        "local",
        json.dumps({"uri": data["path"]}),
        json.dumps({"mlflow_colspec": columns}),
        json.dumps(data.get("counts", {})),
    )
    return DatasetInput(described, [InputTag("mlflow.data.context", ours["kind"])])


def _type(kind: str) -> dict[str, Any]:
    """What MLflow calls a column's type in Arrow; lists hold texts."""
    if kind.startswith("list"):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": {"int32": "integer", "int64": "long", "double": "double"}.get(kind, "string")}


def send(client: "MlflowClient", run: "MlflowRun", record: Record) -> None:
    """Send what is new in a record to its run; once it has ended, its results and status too.

    MLflow stores a value of the same name, step, time and value once: a batch may be sent twice.
    """
    number, ours = run.info.run_id, record.run
    for points, end in record.points(record.sent):
        _log_points(client, number, points)
        record.sent = end
    if ours["status"] is None:
        return
    with answering():
        _log_points(client, number, _changed(client, run, ours))
        if record.artifacts.exists():
            client.log_artifacts(number, str(record.artifacts))
        for key, value in ours["final_tags"].items():
            client.set_tag(number, key, value)
        if run.info.status != ours["status"]:
            client.set_terminated(number, ours["status"], ours["ended"])


def _changed(client: "MlflowClient", run: "MlflowRun", ours: Run) -> list[Point]:
    """Measurements of the finished model that differ from the run's, each at a new step."""
    points = []
    for name, value in ours["numbers"].items():
        if run.data.metrics.get(name) != value:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            points.append((name, value, ours["ended"], max(steps, default=-1) + 1))
    return points


def _log_points(client: "MlflowClient", run: str, points: list[Point]) -> None:
    """Log values; one that MLflow refuses is reported, and the others of its batch are logged."""
    from mlflow.entities import Metric

    try:
        with answering():
            client.log_batch(run, metrics=[Metric(*point) for point in points])
    except Refused as error:
        if len(points) == 1:
            log.warning("tracking: not recorded: %s", error)
            return
        for point in points:
            _log_points(client, run, [point])
