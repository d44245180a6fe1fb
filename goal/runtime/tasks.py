"""Where tasks run: in this process, in processes of this machine, or on a dask cluster.

A cluster is used where the environment names its scheduler, by the variable that dask itself reads:
DASK_SCHEDULER_ADDRESS=tcp://host:8786 (docs/scale.md).
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from goal.runtime import cluster, pool, signals, task_progress

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
    Raises UserError as the function does and for a task that kills its workers, Unavailable where the cluster
    fails, Interrupted on SIGTERM and SIGINT.
    """
    address = os.environ.get(cluster.SCHEDULER)
    stopped = f"{label}: stopped; what is finished is kept, run the command again to go on"
    with signals.at_once(stopped), tqdm(total=total, initial=done, desc=label, unit=" pictures") as bar:
        if address:
            cluster.run(address, function, tasks, sizes, bar)
        elif min(workers, len(tasks)) == 1:
            with task_progress.reporting_to(bar.update):
                for task in tasks:
                    function(task)
        else:
            pool.run(function, tasks, min(workers, len(tasks)), modules, bar)
        bar.update(total - bar.n)
