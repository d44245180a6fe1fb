"""A run heeds its own state, where worker and server lost sight of it.

A worker that could not reach the server for half a minute no longer hears of cancellations, and a server
that was away for longer than heartbeats may be missing takes a living run for dead (Prefect 3.8).
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

# Seconds between two looks. A worker that does hear gives a run 30 to save, then kills it: who lives past
# three looks is on its own.
EVERY = 15.0
PATIENCE = 3


@contextmanager
def watched() -> Iterator[None]:
    """Within, this flow run ends where it is cancelled, and says that it lives where it is called dead."""
    done = threading.Event()
    arguments = (flow_run.get_id(), get_run_logger(), done)
    threading.Thread(target=_watch, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(run: str, log: LoggerAdapter, done: threading.Event) -> None:
    cancelled = 0
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        while cancelled < PATIENCE and not done.wait(EVERY):
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
