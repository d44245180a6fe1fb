"""Worker processes of this machine, one task at a time each.

Each worker has a ProcessPoolExecutor of its own: a killed worker breaks its executor only, so that its task
alone starts again, and the tasks of the other workers go on.
"""

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from logging import getLogger
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from tqdm import tqdm

from goal.errors import UserError
from goal.runtime import task_progress

log = getLogger(__name__)

# A task whose worker was killed so often is the cause itself.
DEATHS = 3
# Seconds between updates of the progress bar.
REFRESH = 0.5

_number = 0


def number() -> int:
    """The index of this worker process among the pool's, from 0; 0 also outside a pool."""
    return _number


def run(
    function: Callable[[Any], None], tasks: Sequence[Any], workers: int, modules: Sequence[str], bar: tqdm
) -> None:
    """Call `function` for every task, in `workers` processes; raises as goal.runtime.tasks.run."""
    # The server has imported the work and nothing else; this process may hold threads and a device.
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__, *modules])
    # Rows done by each worker. Without a lock, which a killed worker might hold.
    rows = context.RawArray("q", workers)

    def start(number: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, _begin, (number, rows))

    others, done_before = set(active_children()), bar.n
    executors = [start(number) for number in range(workers)]
    idle, waiting = deque(range(workers)), deque(range(len(tasks)))
    running: dict[Future, tuple[int, int, int]] = {}  # to worker, task and the worker's rows before it
    deaths: Counter[int] = Counter()
    try:
        while waiting or running:
            while waiting and idle:
                worker, task = idle.popleft(), waiting.popleft()
                running[executors[worker].submit(_work, function, tasks[task])] = worker, task, rows[worker]
            for future in wait(running, REFRESH, FIRST_COMPLETED).done:
                worker, task, before = running.pop(future)
                idle.append(worker)
                try:
                    future.result()
                except BrokenProcessPool:
                    deaths[task] += 1
                    if deaths[task] == DEATHS:
                        raise UserError(
                            f"{tasks[task]}: its worker was killed {DEATHS} times; if memory ran out,"
                            " set fewer workers or smaller shards"
                        ) from None
                    log.warning("%s: its worker was killed; starting it again", tasks[task])
                    rows[worker] = before
                    waiting.appendleft(task)
                    executors[worker] = start(worker)
            bar.update(done_before + sum(rows) - bar.n)
    finally:
        # Also those in the middle of a task, which an executor would wait for.
        for process in set(active_children()) - others:
            process.kill()
        for executor in executors:
            executor.shutdown()


def _begin(number: int, rows: Any) -> None:
    """Prepare a worker process."""
    global _number, _rows
    _number, _rows = number, rows
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the command, also by kill -9, which an idle worker would outlive."""
    parent_process().join()
    os._exit(1)


def _work(function: Callable[[Any], None], task: Any) -> None:
    with task_progress.reporting_to(_count):
        function(task)


def _count(done: int) -> None:
    _rows[_number] += done
