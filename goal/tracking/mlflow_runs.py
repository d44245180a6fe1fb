"""The record of trainings and evaluations in MLflow. Nothing here can stop or slow the work it records."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from goal.config import Params, paths
from goal.errors import Interrupted, UserError
from goal.runtime import files
from goal.tracking import journal, lineage, store
from goal.tracking.journal import Record
from goal.tracking.recorder import FAILED, FINISHED, KILLED, Barred, Point, Recorder, Refused, Unreachable
from goal.tracking.store import SQLITE, address, uri
from goal.training.progress import Silent, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger("goal.tracking")

# Read by MLflow; what the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# What they warn of is said here in one line, or means nothing to the user.
NOISY = ("alembic", "urllib3", "mlflow.store.db.utils", "mlflow.system_metrics", "mlflow.utils.environment")
# A training must notice soon that the server is gone; the journal tries again.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
# Seconds for the last records of a run; after a signal, the scheduler kills soon.
PATIENCE = {FINISHED: 60.0, FAILED: 10.0, KILLED: 5.0}
# Tags that MLflow's pages show in columns of their own.
SHOWN = {
    "mlflow.source.git.commit": "goal.commit",
    "mlflow.source.name": "goal.command",
    "mlflow.user": "goal.user",
}
PARAMS_A_CALL = 100  # MLflow's limit
NEVER = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "ENDPOINT_NOT_FOUND"}
DENIED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
DENIED_MEND = "are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD right, and may they do this?"


@contextlib.contextmanager
def training(params: Params, name: str) -> Iterator[Tracker]:
    """The tracker of one training; a killed one goes on in the same run when it is started again."""
    recorder = _recorder(params, f"train-{name}", lambda place: lineage.training(params, name, place))
    if recorder is None:
        yield Silent()
        return
    status = FAILED
    try:
        yield recorder
        status = FINISHED
        _close(recorder, name)
    except (Interrupted, KeyboardInterrupt):
        status = KILLED
        raise
    finally:
        recorder.finish(status, PATIENCE[status])


def _close(recorder: Recorder, name: str) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            for path in lineage.figures(name, Path(folder)):
                recorder.log_artifact(path, "figures")
        recorder.set_tags({"goal.model": files.digest(paths.weights_file(name))})
    except (OSError, UserError) as error:
        log.warning("tracking: of the finished %s not recorded: %s", name, error)


def evaluation(params: Params, name: str, results: Mapping[str, float]) -> None:
    """Put the numbers of a model on the run that trained it; those of zero-shot on a run of its own."""
    _add(params, f"evaluate-{name}", name, results, lineage.measurements(name))


def report(params: Params, name: str) -> None:
    """Put the report on the run of the model that it is about."""
    _add(params, f"report-{name}", name, {}, lineage.report())


def _add(
    params: Params, prefix: str, name: str, results: Mapping[str, float], found: list[tuple[Path, str]]
) -> None:
    recorder = _recorder(params, prefix, lambda place: lineage.evaluation(params, name, place))
    if recorder is None:
        return
    recorder.log_metrics(results, None)
    recorder.set_tags(lineage.outcome(name))
    for path, folder in found:
        recorder.log_artifact(path, folder)
    recorder.finish(FINISHED, PATIENCE[FINISHED])


def _recorder(params: Params, prefix: str, header: Callable[[str], Record]) -> Recorder | None:
    if not params.tracking.enabled:
        log.info("tracking: off (tracking.enabled is false): nothing of this run is recorded")
        return None
    prepare(IMPATIENT)
    root = paths.work_dir("tracking")
    try:
        found = header(journal.place(root))
        folder = root / f"{prefix}-{found['key'][:16]}"
        return Recorder(folder, found, partial(MlflowStore, uri()), address())
    except BlockingIOError:
        log.warning("tracking: another process records the same work; this run is not recorded")
    except OSError as error:
        log.warning("tracking: %s: %s; this run is not recorded", error.filename, error.strerror)
    return None


def prepare(environment: Mapping[str, str] = {}) -> None:
    """Set what MLflow reads at its import, and import it: later threads and forked loaders find it loaded."""
    for key, value in {**ENVIRONMENT, **environment}.items():
        os.environ.setdefault(key, value)
    import mlflow.system_metrics.system_metrics_monitor
    import mlflow.tracking  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)


def connect(where: str) -> "MlflowClient":
    """A client of the tracking store and the registry at a uri.

    A new sqlite store is made by one process at a time: several cold starts would break each other's tables.
    Raises Unreachable or Refused.
    """
    from mlflow import MlflowClient

    lock = FileLock(Path(where.removeprefix(SQLITE) + ".lock"))
    with answering(), lock if where.startswith(SQLITE) else contextlib.nullcontext():
        client = MlflowClient(tracking_uri=where, registry_uri=where)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn every way in which MLflow fails into Unreachable, Barred or Refused."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        if error.error_code in DENIED:
            raise Barred(f"{_one_line(error)}: {DENIED_MEND}") from error
        kind = Refused if error.error_code in NEVER else Unreachable
        raise kind(_one_line(error)) from error
    except (RequestException, SQLAlchemyError, ConnectionError, TimeoutError) as error:
        raise Unreachable(_one_line(error)) from error
    except OSError as error:
        raise Barred(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return store.hidden(" ".join(str(error).split()))[:200]


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The experiment, made where there is none; artefacts of a store in a file lie beside it."""
    from mlflow.exceptions import MlflowException

    if client.get_experiment_by_name(name) is None:
        local = (paths.home() / "mlartifacts").as_uri() if client.tracking_uri.startswith(SQLITE) else None
        try:
            client.create_experiment(name, artifact_location=local)
        except MlflowException as error:
            # Another process made it between the two calls.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    return client.get_experiment_by_name(name).experiment_id


def find(
    client: "MlflowClient", experiment: str, tags: Mapping[str, str], statuses: Sequence[str]
) -> "Run | None":
    """The newest run with these tags in one of these states."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs = client.search_runs([experiment], wanted, order_by=["attributes.start_time DESC"], max_results=100)
    return next((run for run in runs if run.info.status in statuses), None)


class MlflowStore:
    """MLflow as the recorder sees it (goal.tracking.recorder.Store)."""

    def __init__(self, where: str) -> None:
        self._client = connect(where)
        self._monitor: SystemMetricsMonitor | None = None

    def attach(self, header: Record) -> tuple[str, bool]:
        """The run that this work belongs to, made where there is none, and whether it is finished."""
        with answering():
            experiment = experiment_id(self._client, header["experiment"])
            for wanted in header["find"]:
                found = find(self._client, experiment, wanted["tags"], wanted["statuses"])
                if found is not None:
                    if found.info.status != FINISHED:
                        self._client.update_run(found.info.run_id, status="RUNNING")
                    return found.info.run_id, found.info.status == FINISHED
        return self.create(header), False

    def create(self, header: Record) -> str:
        with answering():
            experiment = experiment_id(self._client, header["experiment"])
            tags = header["tags"] | {theirs: header["tags"][ours] for theirs, ours in SHOWN.items()}
            run = self._client.create_run(experiment, header["started"], tags, header["name"])
        log.info("tracking: run %s (%s) in %s", run.info.run_id, header["name"], address())
        return run.info.run_id

    def describe(self, run: str, header: Record) -> None:
        """Parameters, data set and texts; what is there already stays."""
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.data.sources import LocalArtifactDatasetSource
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        with answering():
            known = self._client.get_run(run).data.params
            new = [Param(key, value) for key, value in header["params"].items() if key not in known]
            for start in range(0, len(new), PARAMS_A_CALL):
                self._client.log_batch(run, params=new[start : start + PARAMS_A_CALL])
            data = header["data"]
            source = LocalArtifactDatasetSource(data["path"])
            described = MetaDataset(source, name=data["name"], digest=data["digest"])
            context = InputTag("mlflow.data.context", header["kind"])
            self._client.log_inputs(run, [DatasetInput(Dataset(**described.to_dict()), [context])])
            for path, text in header["texts"].items():
                self._client.log_text(run, text, path)

    def last(self, run: str) -> dict[str, tuple[float, int]]:
        """Each metric's value and step at its last step."""
        with answering():
            keys = [key for key in self._client.get_run(run).data.metrics if not key.startswith("system/")]
            histories = [self._client.get_metric_history(run, key) for key in keys]
        points = [max(history, key=lambda point: point.step) for history in histories]
        return {point.key: (point.value, point.step) for point in points}

    def tag(self, run: str, key: str) -> str | None:
        with answering():
            return self._client.get_run(run).data.tags.get(key)

    def log_points(self, run: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        with answering():
            metrics = [Metric(key, value, time, step) for key, value, step, time in points]
            self._client.log_batch(run, metrics=metrics)

    def set_tags(self, run: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with answering():
            self._client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_file(self, run: str, path: Path, folder: str) -> None:
        with answering():
            self._client.log_artifact(run, str(path), folder or None)

    def end(self, run: str, status: str, time_ms: int) -> None:
        with answering():
            self._client.set_terminated(run, status, time_ms)

    def watch(self, run: str) -> None:
        """Record the machine's load, from MLflow's own thread; one that gave up is started again."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        thread = self._monitor and self._monitor._process
        if thread is None or not thread.is_alive():
            with answering():
                self._monitor = SystemMetricsMonitor(
                    run, resume_logging=True, tracking_uri=self._client.tracking_uri
                )
                self._monitor.start()

    def unwatch(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
