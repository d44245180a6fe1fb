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
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from goal.errors import EXIT_RESUMABLE, EXIT_USER_ERROR, Interrupted, UserError
from goal.runtime import signals

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

log = logging.getLogger(__name__)

# The others wait while the first packs the pictures, validates or saves; by way of the host (gloo), where a
# process that died is noticed at once. Between GPUs (nccl) it is not: there torch's own, shorter wait stays.
WAIT = timedelta(hours=12)
# Seconds that torchrun leaves its processes after a signal, to save; read by torch 2.12 and later, 30 before.
GRACE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110"}
# Process id of the `goal` that started this process; absent where the user's own torchrun did.
LAUNCHER = "GOAL_LAUNCHER"


@dataclass(frozen=True)
class Group:
    """This process among those that train together; with one, every exchange returns what it is given."""

    rank: int
    world: int
    device: torch.device
    patient: dist.ProcessGroup | None = None  # the same processes, for what may take WAIT

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

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether any process says so; by way of the host, so that no device is waited for."""
        if self.world == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(said, dist.ReduceOp.MAX, self.patient)
        return said.bool().tolist()

    def told(self, value: Any) -> Any:
        """What the first process says, for which the others wait."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.patient)
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

    Raises UserError where the processes started are not as many as asked for, or more than GPUs.
    """
    if not started():
        _end_with_dvc()
        yield Group(0, 1, device)
        return
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world != processes:
        raise UserError(f"train.processes {processes}: torchrun started {world}; let the two be equal")
    launcher = os.environ.get(LAUNCHER)
    signals.die_with_parent(int(launcher) if launcher else None)
    if rank:
        logging.getLogger("goal").setLevel(logging.WARNING)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {rank}: torchrun started more processes here than the {torch.cuda.device_count()} "
                "GPUs of this machine; lower --nproc-per-node and train.processes, one process a GPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield Group(rank, world, device, dist.new_group(backend="gloo", timeout=WAIT))
    # Not after an error: the others may be anywhere, and nccl would wait for them.
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
    for name, value in {"OMP_NUM_THREADS": str(threads), **GRACE}.items():
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
        raise Interrupted(f"{what}: {signal.Signals(error.sigval).name}; the same command goes on") from error
    except ChildFailedError as error:
        raise end(what, error, processes) from error


def end(what: str, error: "ChildFailedError", processes: int) -> Interrupted | UserError:
    """The error for the whole where processes failed.

    One that was killed (its exit code is negative) counts most: a peer it left fails too, with a traceback of
    its own, and may be noticed first.
    """
    failures = sorted(error.failures.items(), key=lambda one: one[1].timestamp)
    codes = {rank: failure.exitcode for rank, failure in failures}
    killed = [(rank, code) for rank, code in codes.items() if code < 0]
    if killed:
        rank, code = killed[0]
        return Interrupted(
            f"{what}: process {rank} of {processes} was ended by {signal.Signals(-code).name}, the others "
            "were stopped; the same command goes on from the last checkpoint"
        )
    if EXIT_RESUMABLE in codes.values():
        return Interrupted(f"{what}: stopped and saved; the same command goes on")
    rank, code = min(codes.items(), key=lambda one: one[1] != EXIT_USER_ERROR)
    where = "its message" if code == EXIT_USER_ERROR else "its traceback"
    return UserError(f"{what}: process {rank} of {processes} failed; {where} is above")


def _end_with_dvc() -> None:
    # Only below DVC, which leaves its stages alive when it is killed: a training that a shell put into the
    # background must outlive that shell.
    if os.environ.get("DVC_STAGE"):
        signals.die_with_parent()
