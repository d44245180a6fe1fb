"""The train stage: train one model from its start weights, in one process or as one of several."""

import contextlib
from collections.abc import Iterator

import torch

from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.runtime import signals
from goal.training import batches, distributed
from goal.training.plan import Plan
from goal.training.progress import Tracker
from goal.training.trainer import Trainer


def check(params: Params, name: str) -> None:
    """Raise the UserError of `run` for parameters and hardware, before several processes are launched."""
    _training_rows(params, Plan.of(params, name))


def run(params: Params, name: str, tracker: Tracker) -> None:
    """Train `name` (one of paths.TRAINED) and write models/<name>/ and metrics/<name>/.

    Resumes an unfinished run of the same parameters, data and code. Raises Interrupted after a signal, with
    the state saved; UserError for everything that the user can fix.
    """
    plan = Plan.of(params, name)
    rows = _training_rows(params, plan)
    with (
        explain_oom(params, plan),
        distributed.group(plan.device, params.train.processes) as group,
        _deterministic(group.device),
        signals.deferred(guarded=distributed.started()) as stop_requested,
    ):
        Trainer(params, plan, rows, group, tracker, stop_requested).run()


def _training_rows(params: Params, plan: Plan) -> list[Row]:
    """The training split; UserError where batch_size or warmup_steps does not fit its size."""
    file, stage = paths.manifest(params.data.name, "train"), plan.stage
    rows = manifest.read(file)
    if stage.epochs:
        batches.check(plan.section, stage.batch_size, len(rows), params.train.processes, file)
        plan.check_steps(stage.epochs * batches.steps_per_epoch(len(rows), stage.batch_size))
    return rows


@contextlib.contextmanager
def explain_oom(params: Params, plan: Plan) -> Iterator[None]:
    """Turn the GPU's out-of-memory error into a UserError that says what to set."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        pairs = params.train.chunk_size or plan.stage.batch_size // params.train.processes
        raise UserError(
            f"{plan.name}: the GPU is out of memory; set train.chunk_size to fewer than {pairs} pairs (`goal "
            f"fit-batch {plan.name}` finds what fits), or train.checkpoint_activations to true"
        ) from error


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, the same bits in every run; not on a GPU, where deterministic kernels are slower."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device.type == "cpu")
    # Filling new tensors only helps to find reads of uninitialised memory, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
