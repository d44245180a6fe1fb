"""Where tasks run: in this process, in processes of this machine, or on a dask cluster.

A cluster is used where the environment names its scheduler: DASK_SCHEDULER=tcp://host:8786. Its workers need
this project installed, the same files under the same paths, and one thread each (`dask worker --nthreads 1`).
"""

import logging
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

from tqdm import tqdm

from goal import files, interrupts
from goal.errors import Interrupted, UserError

log = logging.getLogger(__name__)

SCHEDULER = "DASK_SCHEDULER"
# A task that ends its worker so often is at fault itself.
DEATHS = 3
CONNECT_SECONDS = 20

Function = Callable[[Any], None]


def run(
    function: Function,
    tasks: Sequence[Any],
    sizes: Sequence[int],
    *,
    workers: int,
    modules: Sequence[str],
    label: str,
    total: int,
    done: int,
) -> None:
    """Call `function` once for every task, in any order and possibly elsewhere, under a progress bar.

    function, tasks: picklable; a task may run twice when its worker is killed. sizes: rows of each task;
    total, done: rows of all and those done before, for the bar. workers: processes, where no cluster is
    named; modules: what they will need, imported once for all.
    Raises UserError as the function does and for a task that kills its workers, Interrupted on SIGTERM and
    SIGINT.
    """
    address = os.environ.get(SCHEDULER)
    with tqdm(total=total, initial=done, desc=label, unit=" pictures") as bar, _stoppable(label):
        if address:
            _on_cluster(address, function, tasks, sizes, bar)
        elif min(workers, len(tasks)) == 1:
            with _reporting(bar.update):
                for task in tasks:
                    function(task)
        else:
            _in_processes(function, tasks, min(workers, len(tasks)), modules, bar)
        bar.update(total - bar.n)


def advance(rows: int) -> None:
    """Tell the progress bar, wherever it is, that the running task has done some more rows."""
    _report(rows)


def _report(rows: int) -> None:
    """What `advance` calls; replaced while an engine listens."""


@contextmanager
def _reporting(report: Callable[[int], Any]) -> Iterator[None]:
    global _report
    before, _report = _report, report
    try:
        yield
    finally:
        _report = before


@contextmanager
def _stoppable(label: str) -> Iterator[None]:
    """Within, SIGTERM and SIGINT end the work at once; finished files are whole."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{label}: stopped; what is finished is kept, run the command again to go on"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


class _Worker:
    """A process that takes one task at a time."""

    def __init__(self, context: BaseContext, function: Function) -> None:
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other), daemon=True)
        self.process.start()
        other.close()
        self.number: int | None = None  # of its task
        self.rows = 0  # done of its task

    def give(self, number: int, task: Any) -> None:
        """Hand it a task; one that it dies over, even before it took it, is told by the connection's end."""
        self.number, self.rows = number, 0
        with suppress(BrokenPipeError):
            self.connection.send(task)

    def end(self) -> int:
        """Kill it, if it lives; returns its exit code."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


def _serve(function: Function, connection: Connection) -> None:
    """A worker's life: tasks in; out go rows done (int) and a task's end (a UserError's line or None)."""
    interrupts.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _reporting(connection.send):
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            try:
                function(task)
                connection.send(None)
            except UserError as error:
                connection.send(str(error))


def _in_processes(
    function: Function, tasks: Sequence[Any], workers: int, modules: Sequence[str], bar: tqdm
) -> None:
    # Forks of a server that has imported the work and nothing else: this process may hold threads, a device.
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__, *modules])
    waiting = deque(range(len(tasks)))
    deaths: Counter[int] = Counter()
    crew: dict[Connection, _Worker] = {}
    try:
        while True:
            while waiting and len(crew) < workers:
                worker = _Worker(context, function)
                crew[worker.connection] = worker
            for worker in crew.values():
                if waiting and worker.number is None:
                    number = waiting.popleft()
                    worker.give(number, tasks[number])
            busy = [connection for connection, worker in crew.items() if worker.number is not None]
            if not busy:
                return
            for connection in wait(busy):
                lost = _hear(crew[connection], bar)
                if lost is not None:
                    del crew[connection]
                    waiting.appendleft(lost)
                    deaths[lost] += 1
                    if deaths[lost] == DEATHS:
                        raise UserError(
                            f"{tasks[lost]}: its worker was killed {DEATHS} times; if for want of memory,"
                            " lower workers or shard_size"
                        )
    finally:
        for worker in crew.values():
            worker.end()


def _hear(worker: _Worker, bar: tqdm) -> int | None:
    """Take one message of a worker; returns the number of its task if it was killed over it."""
    try:
        message = worker.connection.recv()
    except (EOFError, ConnectionError):
        code = worker.end()
        if code >= 0:
            raise RuntimeError("a worker failed; what happened stands above") from None
        log.warning("a worker was killed (%s); its shard is made anew", signal.Signals(-code).name)
        bar.update(-worker.rows)
        return worker.number
    if isinstance(message, str):
        raise UserError(message)
    if message is None:
        worker.number = None
    else:
        worker.rows += message
        bar.update(message)
    return None


def _on_cluster(
    address: str, function: Function, tasks: Sequence[Any], sizes: Sequence[int], bar: tqdm
) -> None:
    try:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise UserError(
            f"{SCHEDULER} is set but dask is not here: install goal-clip[scale], or unset it"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{SCHEDULER}={address}: no scheduler answers there: start it, or unset it"
        ) from error
    with client:
        log.info("%s: %d workers", address, len(client.scheduler_info()["workers"]))
        checked = partial(_by_this_code, files.source_digest(), function)
        futures = client.map(checked, tasks, pure=False)
        rows = dict(zip((future.key for future in futures), sizes, strict=True))
        try:
            for future in as_completed(futures):
                future.result()
                bar.update(rows[future.key])
        except KilledWorker as error:
            raise UserError(f"{address}: a shard killed its workers again and again: {error}") from error
        finally:
            client.cancel(futures)


def _by_this_code(code: str, function: Function, task: Any) -> None:
    """On a cluster's worker: refuse where another version of the project is installed."""
    if files.source_digest() != code:
        raise UserError(
            "a worker runs other code than this command: install the same and restart the workers"
        )
    function(task)
