"""One training over several processes: started through torchrun's agent, joined, and tensors exchanged.

Letters: B rows of this process, G of all processes together.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from goal import interrupts
from goal.errors import EXIT_RESUMABLE, EXIT_USER_ERROR, Interrupted, UserError

log = logging.getLogger(__name__)

# The others wait while the first packs the pictures or validates; a process that died is noticed at once.
WAIT = timedelta(hours=12)
# Process id of the `goal` that started this process; absent where the user's own torchrun did.
LAUNCHER = "GOAL_LAUNCHER"


@dataclass(frozen=True)
class Group:
    """This process among those that train together; with one, every exchange returns what it is given."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of all processes as (G, ...) in their order; the gradient is the sum of all."""
        return rows if self.world == 1 else _Gather.apply(rows, self.rank, self.world)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, without gradient."""
        if self.world == 1:
            return values.detach()
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, flag: bool) -> bool:
        """Whether any process says so; by way of the host, so that no device is waited for."""
        if self.world == 1:
            return flag
        said = torch.tensor(int(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def told(self, value: Any) -> Any:
        """What the first process says."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, rank: int, world: int) -> Tensor:
        context.rank = rank
        everyone = rows.new_empty(world * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(everyone, rows.contiguous())
        return everyone

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Every process's loss reaches these rows: what they all ask of them is summed.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own = len(total) // dist.get_world_size()
        return total[context.rank * own : (context.rank + 1) * own], None, None


def started() -> bool:
    """Whether torchrun's agent started this process."""
    return dist.is_torchelastic_launched()


def is_first() -> bool:
    """Whether this process is the one that records: also before the processes have joined."""
    return int(os.environ["RANK"]) == 0 if started() else True


@contextmanager
def group(device: torch.device, processes: int) -> Iterator[Group]:
    """Join the processes that torchrun started, or be alone; `processes` is train.processes.

    Raises UserError where the processes started are not as many as asked for.
    """
    if not started():
        _end_with_dvc()
        yield Group(0, 1, device)
        return
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world != processes:
        raise UserError(f"train.processes {processes}: torchrun started {world}; let the two be equal")
    launcher = os.environ.get(LAUNCHER)
    interrupts.die_with_parent(int(launcher) if launcher else None)
    if rank:
        logging.getLogger("goal").setLevel(logging.WARNING)
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield Group(rank, world, device)
    finally:
        dist.destroy_process_group()


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `python -m goal <arguments>` in so many processes on this machine and wait for them.

    Raises Interrupted where they were stopped and the same command goes on, UserError where they failed; what
    was wrong, the process itself has said.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _end_with_dvc()
    what = " ".join(arguments)
    # Each process would otherwise take all cores.
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "goal", *arguments)
    except SignalException as error:
        raise Interrupted(f"{what}: {signal.Signals(error.sigval).name}; the same command goes on") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == EXIT_RESUMABLE:
            raise Interrupted(f"{what}: stopped and saved; the same command goes on") from error
        if failure.exitcode < 0:
            raise Interrupted(
                f"{what}: process {rank} of {processes} was ended by {failure.signal_name()}, the others "
                "were stopped; the same command goes on from the last checkpoint"
            ) from error
        where = "its message" if failure.exitcode == EXIT_USER_ERROR else "its traceback"
        raise UserError(f"{what}: process {rank} of {processes} failed; {where} is above") from error


def _end_with_dvc() -> None:
    # Only below DVC, which leaves its stages alive when it is killed: a training that a shell put into the
    # background must outlive that shell.
    if os.environ.get("DVC_STAGE"):
        interrupts.die_with_parent()
