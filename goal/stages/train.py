"""The train stage: one model, from its start weights to the finished one, over any number of processes."""

import contextlib
from collections.abc import Iterator

import torch

from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.runtime import signals
from goal.training import batches, distributed, recipe
from goal.training.progress import Tracker
from goal.training.recipe import Recipe
from goal.training.trainer import Trainer


def check(params: Params, name: str) -> None:
    """Raise what `run` would raise for parameters and hardware, once, before several processes start."""
    _rows(params, recipe.plan(params, name))


def run(params: Params, name: str, tracker: Tracker) -> None:
    """Train `name` (one of paths.TRAINED): write models/<name>/ and metrics/<name>/{train.json,loss.csv}.

    An unfinished run of the same parameters, data and code goes on. Raises Interrupted after a signal,
    the state saved; UserError for whatever the user can fix.
    """
    plan = recipe.plan(params, name)
    rows = _rows(params, plan)
    with (
        explain_oom(params, plan),
        distributed.group(plan.device, params.train.processes) as group,
        _deterministic(group.device),
        signals.deferred(guarded=distributed.started()) as stop_requested,
    ):
        Trainer(params, plan, rows, group, tracker, stop_requested).run()


def _rows(params: Params, plan: Recipe) -> list[Row]:
    file = paths.manifest(params.data.name, "train")
    rows = manifest.read(file)
    if plan.stage.epochs:
        batches.check(plan.section, plan.stage.batch_size, len(rows), params.train.processes, file)
        recipe.check_steps(plan, plan.stage.epochs * batches.steps_an_epoch(len(rows), plan.stage.batch_size))
    return rows


@contextlib.contextmanager
def explain_oom(params: Params, plan: Recipe) -> Iterator[None]:
    """Say what to do where the GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        pairs = params.train.chunk_size or plan.stage.batch_size // params.train.processes
        raise UserError(
            f"{plan.name}: the GPU is out of memory; set train.chunk_size to fewer than {pairs} pairs (`goal "
            f"fit-batch {plan.name}` says what fits), or train.checkpoint_activations to true"
        ) from error


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, the same bits in every run; a GPU would pay for it with speed."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device.type == "cpu")
    # For finding code that reads what it never wrote; every new tensor would be written twice.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
