"""A flow run checks its own state on the server, because worker and server may lose track of it.

With Prefect 3.8 a worker that could not reach the server for half a minute gets no more cancellations, and a
server that was down for longer than a run may miss heartbeats takes a live run for dead.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import LoggerAdapter

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Running

EVERY = 15.0  # seconds between two checks
# A worker that gets a cancellation kills its run after 30 seconds: a run that sees a third check ends itself.
CHECKS = 3


@contextmanager
def watched() -> Iterator[None]:
    """Within, this flow run ends if it is cancelled, and reports that it runs if the server calls it dead."""
    done = threading.Event()
    arguments = (flow_run.get_id(), get_run_logger(), done)
    thread = threading.Thread(target=_watch, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        # Else a check that is under way could set `Running` after the run's final state.
        thread.join()


def _watch(run: str, log: LoggerAdapter, done: threading.Event) -> None:
    cancelled = 0
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        while cancelled < CHECKS and not done.wait(EVERY):
            with suppress(httpx.HTTPError, PrefectException):
                cancelled = cancelled + 1 if _cancelling(client, run) else 0
    if not done.is_set():
        log.warning("cancelled, and the worker does not act on it: ending")
        os.kill(os.getpid(), signal.SIGTERM)


def _cancelling(client: SyncPrefectClient, run: str) -> bool:
    state = client.read_flow_run(run).state
    if state.is_crashed():
        client.set_flow_run_state(run, Running(message="it lives"), force=True)
    return state.is_cancelling()
