"""One training over several processes: launch them through torchrun's agent, join the group, communicate.

Letters: B rows of this rank, G rows of all ranks together. In messages, "the first process" is rank 0.
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
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from goal.errors import EXIT_RESUMABLE, EXIT_USER_ERROR, Interrupted, UserError
from goal.runtime import signals

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

log = logging.getLogger(__name__)

# How long the other ranks wait while rank 0 packs pictures, validates or saves. Only over gloo, which notices
# at once when a process died; nccl does not, so collectives between GPUs keep torch's shorter timeout.
SLOW_TIMEOUT = timedelta(hours=12)
# Seconds that torchrun gives its processes to save after a signal; torch before 2.12 ignores it and takes 30.
SHUTDOWN_TIMEOUT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"}
# Environment variable with the process id of the `goal` that launched this process; the user's own torchrun
# does not set it.
LAUNCHER = "GOAL_LAUNCHER"


@dataclass(frozen=True)
class Group:
    """The processes of one training, seen from this one; with a single process every method is local."""

    rank: int
    world: int
    device: torch.device
    slow_group: dist.ProcessGroup | None = None  # the same ranks over gloo, with SLOW_TIMEOUT

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files and logs."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """All-gather rows (B, ...) into (G, ...), in rank order; the backward pass sums over ranks."""
        return rows if self.world == 1 else _Gather.apply(rows, self.rank, self.world)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks, without gradient."""
        if self.world == 1:
            return values.detach()
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank; over gloo, which does not wait for a GPU."""
        if self.world == 1:
            return list(flags)
        reduced = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(reduced, dist.ReduceOp.MAX, self.slow_group)
        return reduced.bool().tolist()

    def broadcast(self, value: Any) -> Any:
        """Broadcast a Python object from rank 0; the other ranks wait for it, up to SLOW_TIMEOUT."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.slow_group)
        return values[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, rank: int, world: int) -> Tensor:
        context.rank = rank
        gathered = rows.new_empty(world * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # The loss of every rank depends on these rows, so their gradients are summed.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own = len(total) // dist.get_world_size()
        return total[context.rank * own : (context.rank + 1) * own], None, None


def started() -> bool:
    """Whether torchrun's agent started this process."""
    return dist.is_torchelastic_launched()


def is_first() -> bool:
    """Whether this is rank 0; unlike Group.is_first, known before the process group exists."""
    return int(os.environ["RANK"]) == 0 if started() else True


@contextmanager
def group(device: torch.device, processes: int) -> Iterator[Group]:
    """Join the processes that torchrun started, or train in this process alone.

    processes: train.processes. Raises UserError where torchrun started another number, or more than GPUs.
    """
    if not started():
        _end_with_dvc()
        yield Group(0, 1, device)
        return
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world != processes:
        raise UserError(f"train.processes {processes}: torchrun started {world}; make the two equal")
    launcher = os.environ.get(LAUNCHER)
    signals.die_with_parent(int(launcher) if launcher else None)
    if rank:
        logging.getLogger("goal").setLevel(logging.WARNING)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {rank}: torchrun started more processes here than the {torch.cuda.device_count()} "
                "GPUs of this machine; lower --nproc-per-node and train.processes to one process per GPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield Group(rank, world, device, dist.new_group(backend="gloo", timeout=SLOW_TIMEOUT))
    # Not after an error: the other ranks may still be training, and nccl would wait for them.
    dist.destroy_process_group()


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `python -m goal <arguments>` in `processes` processes on this machine and wait for them.

    Raises Interrupted where they were stopped and the same command resumes, UserError where one failed, which
    has printed the reason itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _end_with_dvc()
    command = " ".join(arguments)
    # Without a limit, each process would start a thread per core.
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    for name, value in {"OMP_NUM_THREADS": str(threads), **SHUTDOWN_TIMEOUT}.items():
        os.environ.setdefault(name, value)
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
        name = signal.Signals(error.sigval).name
        raise Interrupted(f"{command}: stopped by {name}; run the same command to resume") from error
    except ChildFailedError as error:
        raise job_error(command, error, processes) from error


def job_error(command: str, error: "ChildFailedError", processes: int) -> Interrupted | UserError:
    """The error of the whole job whose processes failed.

    A process that was killed (negative exit code) is reported before any other: its peers fail as a
    consequence, and the agent may notice them first.
    """
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    codes = {rank: failure.exitcode for rank, failure in failures}
    rank, code = min(codes.items(), key=lambda item: (item[1] >= 0, item[1] != EXIT_USER_ERROR))
    if code < 0:
        return Interrupted(
            f"{command}: process {rank} of {processes} was killed by {signal.Signals(-code).name}, the other "
            "processes were stopped; run the same command to resume from the last checkpoint"
        )
    if EXIT_RESUMABLE in codes.values():
        return Interrupted(f"{command}: stopped and saved; run the same command to resume")
    where = "its message" if code == EXIT_USER_ERROR else "its traceback"
    return UserError(f"{command}: process {rank} of {processes} failed; {where} is above")


def _end_with_dvc() -> None:
    # DVC leaves its stages running when it is killed. Without DVC, a training that a shell started in the
    # background must outlive that shell.
    if os.environ.get("DVC_STAGE"):
        signals.die_with_parent()
