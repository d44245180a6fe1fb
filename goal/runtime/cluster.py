"""A dask cluster that others started: its workers have this project and see its files under the same paths.

A worker has one thread (`dask worker --nthreads 1`): networks and torch's threads are those of a process.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from goal.errors import Unavailable, UserError
from goal.runtime import code

log = logging.getLogger(__name__)

SCHEDULER = "DASK_SCHEDULER_ADDRESS"
CONNECT_SECONDS = 20  # for the scheduler to answer
WORKER_SECONDS = 20  # for it to have a worker

Function = Callable[[Any], None]


def run(address: str, function: Function, tasks: Sequence[Any], sizes: Sequence[int], bar: tqdm) -> None:
    """Call `function` for every task on the workers of the scheduler; raises as goal.runtime.tasks.run."""
    try:
        from distributed import CancelledError, Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise UserError(
            f"{SCHEDULER} is set but dask is not here: pip install 'goal-clip[scale]', or unset it"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"{SCHEDULER}={address}: no scheduler answers there: start it, or unset it"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise Unavailable(
                f"{SCHEDULER}={address}: it has no worker: start some, `dask worker {address} --nthreads 1`"
            ) from error
        log.info("%s: %d workers", address, len(client.nthreads()))
        checked = partial(_checked, code.digest(), function)
        futures = client.map(checked, tasks, pure=False)
        rows = dict(zip((future.key for future in futures), sizes, strict=True))
        try:
            for future in as_completed(futures):
                # A finished one's result is None: fetching it could only fail, where the scheduler just ends.
                if future.status in ("error", "cancelled"):
                    future.result()
                bar.update(rows[future.key])
        except KilledWorker as error:
            raise UserError(f"{address}: a shard killed its workers again and again: {error}") from error
        except CancelledError as error:
            raise Unavailable(
                f"{address}: the scheduler is gone; what is finished is kept, run the command again to go on"
            ) from error
        finally:
            client.cancel(futures)


def _checked(wanted: str, function: Function, task: Any) -> None:
    """On a worker: refuse where it runs other code than the command, or threads would share a network."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads != 1:
        raise UserError(
            f"{worker.address}: this worker has {worker.state.nthreads} threads: start it with --nthreads 1"
        )
    if code.digest() != wanted:
        raise UserError(
            f"{worker.address}: this worker runs other code than the command: install the same and restart it"
        )
    function(task)
