"""Processes of this machine, each with one task at a time.

Not concurrent.futures: there one killed worker breaks the pool, and all shards under way are lost with it.
Not dask's LocalCluster: the default pipeline does without that extra, and its workers import all of it anew.
"""

import logging
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

from tqdm import tqdm

from goal.errors import UserError
from goal.runtime import signals, task_progress

log = logging.getLogger(__name__)

# A task that ends its worker so often is at fault itself.
DEATHS = 3

Function = Callable[[Any], None]

_number = 0


def number() -> int:
    """The place of this process among the pool's, from 0; 0 also outside a pool."""
    return _number


class _Worker:
    """A process that takes one task at a time."""

    def __init__(self, context: BaseContext, function: Function, number: int) -> None:
        self.number = number
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other, number), daemon=True)
        self.process.start()
        other.close()
        self.task: int | None = None  # its number
        self.rows = 0  # done of its task

    def give(self, task: int, content: Any) -> None:
        """Hand it a task; one that it dies over, even before it took it, is told by the connection's end."""
        self.task, self.rows = task, 0
        with suppress(BrokenPipeError):
            self.connection.send(content)

    def end(self) -> int:
        """Kill it, if it lives; returns its exit code."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


def _serve(function: Function, connection: Connection, number: int) -> None:
    """A worker's life: tasks in; out go rows done (int) and a task's end (a UserError's line or None)."""
    global _number
    _number = number
    signals.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with task_progress.told(connection.send):
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


def run(function: Function, tasks: Sequence[Any], workers: int, modules: Sequence[str], bar: tqdm) -> None:
    """Call `function` for every task, in `workers` processes; raises as goal.runtime.tasks.run."""
    # Forks of a server that has imported the work and nothing else: this process may hold threads, a device.
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__, *modules])
    waiting = deque(range(len(tasks)))
    deaths: Counter[int] = Counter()
    crew: dict[Connection, _Worker] = {}
    try:
        while True:
            while waiting and len(crew) < workers:
                free = set(range(workers)) - {worker.number for worker in crew.values()}
                worker = _Worker(context, function, min(free))
                crew[worker.connection] = worker
            for worker in crew.values():
                if waiting and worker.task is None:
                    task = waiting.popleft()
                    worker.give(task, tasks[task])
            busy = [connection for connection, worker in crew.items() if worker.task is not None]
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
                            " let fewer work at once, or make shards smaller"
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
        return worker.task
    if isinstance(message, str):
        raise UserError(message)
    if message is None:
        worker.task = None
    else:
        worker.rows += message
        bar.update(message)
    return None
