"""Logs trainings, evaluations and reports: to files, from there to MLflow. Nothing here stops the work."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from goal.config import Params, paths
from goal.errors import Interrupted, UserError
from goal.runtime import files
from goal.tracking import lineage, mlflow_store, records, sync
from goal.tracking.mlflow_store import IMPATIENT
from goal.tracking.records import FAILED, FINISHED, KILLED, Busy, Record
from goal.training.progress import Silent, Tracker

log = logging.getLogger("goal.tracking")


@contextlib.contextmanager
def training(params: Params, name: str) -> Iterator[Tracker]:
    """The tracker of one training; a killed one goes on in the same run when it is started again."""
    with contextlib.ExitStack() as stack:
        record = _begun(params, name, stack)
        if record is None:
            yield Silent()
            return
        live, status = sync.Live(record), FAILED
        try:
            yield record
            status = FINISHED
        except (Interrupted, KeyboardInterrupt):
            status = KILLED
            raise
        finally:
            _end(record, name, status)
            live.finish(status)


def _begun(params: Params, name: str, stack: contextlib.ExitStack) -> Record | None:
    if not _enabled(params):
        return None
    mlflow_store.prepare(IMPATIENT)
    run = lineage.training(params, name)
    try:
        stack.enter_context(records.lock(run["work"]))
        return records.of_training(run)
    except Busy:
        log.warning("tracking: another process records the same work; this run is not recorded")
    except (OSError, UserError) as error:
        log.warning("tracking: %s; this run is not recorded", error)
    return None


def _end(record: Record, name: str, status: str) -> None:
    try:
        record.end(status, _results(record, name) if status == FINISHED else {})
    except UserError as error:
        log.warning("tracking: the end of %s is not recorded: %s", name, error)


def _results(record: Record, name: str) -> dict[str, str]:
    """Copy the files of a finished training into its record; returns the tag that names the model."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            record.copy(lineage.results(name, Path(folder)))
        return {"goal.model": files.digest(paths.weights_file(name))}
    except (OSError, UserError) as error:
        log.warning("tracking: of the finished %s not recorded: %s", name, error)
        return {}


def evaluation(params: Params, name: str, numbers: Mapping[str, float], on: str = "") -> None:
    """Log the numbers of a model on the run that trained it; those of zero-shot on a run of its own.

    on: another data set than the pipeline's own.
    """
    _add(params, name, numbers, lineage.measurements(name), on)


def report(params: Params, name: str) -> None:
    """Log the report on the run of the model that it is about."""
    _add(params, name, {}, lineage.report())


def _add(
    params: Params,
    name: str,
    numbers: Mapping[str, float],
    artifacts: list[tuple[Path, str]],
    on: str = "",
) -> None:
    if not _enabled(params):
        return
    mlflow_store.prepare(IMPATIENT)
    run = lineage.evaluation(params, name, numbers, on)
    try:
        records.write(run, artifacts)
        sync.run()
    except UserError as error:
        sync.report(str(error))


def _enabled(params: Params) -> bool:
    if not params.tracking.enabled:
        log.info("tracking: off (tracking.enabled is false): nothing of this run is recorded")
    return params.tracking.enabled


def experiment(params: Params) -> str:
    """The id of the experiment on the tracking server; empty where tracking is off or no server answers."""
    if not params.tracking.enabled or not mlflow_store.uri().startswith("http"):
        return ""
    mlflow_store.prepare(IMPATIENT)
    try:
        with mlflow_store.answering():
            return mlflow_store.experiment_id(mlflow_store.connect(), params.tracking.experiment)
    except UserError as error:
        log.warning("%s; the report has no links to runs", error)
        return ""
