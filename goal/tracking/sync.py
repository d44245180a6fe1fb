"""Brings records to MLflow: during a training by a thread, so that no step waits, and afterwards by `run`.

MLflow's own asynchronous logging does not serve here: what failed is lost, and the process waits without a
limit at its end for a server that does not answer. Here the files are the queue, and sending may be repeated.
"""

import logging
import threading
from typing import TYPE_CHECKING

from goal.errors import UserError
from goal.runtime import locks
from goal.tracking import mlflow_store, records
from goal.tracking.mlflow_store import Refused
from goal.tracking.records import FAILED, FINISHED, KILLED, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger("goal.tracking")

# Seconds from one round of a live training to the next, and after one that failed.
EVERY, AFTER_FAILURE = 5.0, 60.0
# Seconds to wait at the end of a training; after a signal, the scheduler kills soon.
PATIENCE = {FINISHED: 60.0, FAILED: 10.0, KILLED: 5.0}


def run() -> int:
    """Send all records but those of live trainings, and return how many.

    Raises Unavailable where the server is away, UserError where it denies access; the rest stays for later.
    """
    with locks.held(records.root() / "lock"):
        waiting = records.pending()
        client = mlflow_store.connect() if waiting else None
        for record in waiting:
            try:
                mlflow_store.send(client, mlflow_store.attach(client, record), record)
            except Refused as error:
                log.warning("tracking: %s: not sent: %s", record.folder, error)
                continue
            if record.run["status"] == FINISHED:
                record.remove()
            else:
                record.save(sent=True)
    return len(waiting)


def report(problem: str) -> None:
    """Tell where the records are that could not be sent, and what sends them."""
    log.warning("tracking: %s; records are kept in %s, `goal sync` sends them", problem, records.root())


class Live:
    """Sends a training's record now and then from a daemon thread, until `finish`."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._over = threading.Event()
        self._problem = "not sent in time"
        self._thread = threading.Thread(target=self._work, name="goal-tracking", daemon=True)
        self._thread.start()

    def finish(self, status: str) -> None:
        """Once the record has ended: send the rest, and wait for that up to PATIENCE[status] seconds."""
        self._over.set()
        self._thread.join(PATIENCE[status])
        if self._problem:
            report(self._problem)

    def _work(self) -> None:
        client = ours = monitor = None
        pause, reported = 0.0, False
        while not self._over.wait(pause) and not self._record.repeated:
            try:
                client = client or mlflow_store.connect()
                ours = ours or mlflow_store.attach(client, self._record)
                mlflow_store.send(client, ours, self._record)
                monitor = monitor or _monitor(client, ours.info.run_id)
                pause = EVERY
            except UserError as error:
                if not reported:
                    log.warning("tracking: %s; the work goes on, its record is kept", error)
                pause, reported = AFTER_FAILURE, True
                # It gives up as soon as the server is away.
                if monitor:
                    monitor.finish()
                monitor = None
        self._over.wait()
        if monitor:
            monitor.finish()
        try:
            run()
            self._problem = ""
        except UserError as error:
            self._problem = str(error)


def _monitor(client: "MlflowClient", run: str) -> "SystemMetricsMonitor":
    """MLflow's own thread, which logs the machine's load."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    with mlflow_store.answering():
        monitor = SystemMetricsMonitor(run, resume_logging=True, tracking_uri=client.tracking_uri)
        monitor.start()
    return monitor
