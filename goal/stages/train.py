"""The training of one model, from its start weights to the finished one, over any number of processes."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

import torch

from goal import weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import Interrupted, UserError
from goal.model.network import Spec
from goal.runtime import signals
from goal.training import batches, best, distributed, examples, finished, learner, packed, recipe, step
from goal.training.batches import BatchSampler, Collate
from goal.training.checkpoint import Checkpoints
from goal.training.distributed import Group
from goal.training.examples import Examples, Fault, Needs
from goal.training.learner import Learner
from goal.training.progress import Progress, Silent, Tracker
from goal.training.recipe import Recipe
from goal.training.telling import Telling
from goal.training.validation import Validation

log = logging.getLogger(__name__)


def check(params: Params, name: str) -> None:
    """Raise what `run` would raise for parameters and hardware, once, before several processes start."""
    _rows(params, recipe.plan(params, name))


def run(params: Params, name: str, tracker: Tracker) -> None:
    """Train `name` (one of paths.TRAINED): write models/<name>/ and metrics/<name>/{train.json,loss.csv}.

    An unfinished run of the same parameters, data and code goes on. Raises Interrupted after a signal,
    the state saved; UserError for whatever the user can mend.
    """
    plan = recipe.plan(params, name)
    rows = _rows(params, plan)
    size = plan.stage.batch_size
    steps_per_epoch = batches.steps_per_epoch(len(rows), size)
    steps = plan.stage.epochs * steps_per_epoch
    recipe.check_steps(plan, steps)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_room(params, plan))
        group = stack.enter_context(distributed.group(plan.device, params.train.processes))
        stack.enter_context(_deterministic(group.device))
        asked = stack.enter_context(signals.taken_down(guarded=distributed.started()))
        torch.manual_seed(params.seed)
        model = weights.load(plan.start).to(group.device).train()
        model.set_grad_checkpointing(params.train.checkpoint_activations)
        data = _examples(params, plan, rows, model.spec, group)
        taught = Learner(model, plan.stage, plan.weights, steps, group)
        if steps == 0:
            log.info("%s: %s.epochs is 0, the weights of %s are passed on", name, plan.section, plan.start)
            if group.first:
                finished.write(params, plan, taught, data.counts())
            return

        validation = _validation(params, plan, model.spec)
        saves = Checkpoints(
            paths.work_dir(f"train-{name}"), plan.identity(params), params.train.keep_checkpoints
        )
        if group.first:
            stack.enter_context(saves.held())
        saved = saves.restore()
        if saved:
            taught.restore(saved)
            log.info("%s: goes on after step %d of %d", name, taught.step, steps)
        _check_agreed(taught, group, saves)
        order = BatchSampler(
            len(rows), size, plan.stage.epochs, params.seed, taught.step, group.rank, group.world
        )
        collate = Collate(model.spec, params.train.chunk_size)
        coming = batches.load(data, order, collate, params.train.loader_workers, group.device)
        wrapped = step.wrapped(model, params.train.compile, group)
        progress = stack.enter_context(Progress(name, taught.step, steps, size, group.first))
        told = Telling(taught, tracker if group.first else Silent(), progress)
        saved_at = time.monotonic()
        done: torch.cuda.Event | None = None

        while True:
            if validation and _validates(taught, plan, steps_per_epoch):
                found = validation.measure(model, plan.autocast, taught.step) if group.first else None
                taught.validations.append(group.told(found))
                told.validation()
                if group.first and plan.stage.keep == "best" and taught.stale == 0:
                    best.keep(saves, taught)
            if taught.step == steps or 0 < plan.stage.patience <= taught.stale:
                break
            late = group.first and time.monotonic() - saved_at > params.train.checkpoint_minutes * 60
            stop, save = group.any(asked(), late)
            if stop or save:
                _stop_if_wrong(taught, order, rows, plan)
                told.losses()
                _save(saves, taught, group, stop)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(
                    f"{name}: saved after step {taught.step} of {steps}; the same command goes on"
                )

            began = time.monotonic()
            chunks = next(coming)
            # A GPU that is still at work on the step before has not waited.
            if done is None or done.query():
                progress.waited(time.monotonic() - began)
            if isinstance(chunks, Fault):
                raise UserError(f"{name}: {chunks.message}")
            told.step(taught.update(step.backward(wrapped, chunks, plan.weights, group, plan.autocast)))
            done = torch.cuda.current_stream().record_event() if group.device.type == "cuda" else None

            # On a GPU the values are looked at now and then only: each look waits for all work under way.
            tells = taught.step % params.train.log_every == 0 or taught.step == steps
            if tells or group.device.type == "cpu":
                _stop_if_wrong(taught, order, rows, plan)
            if tells:
                told.losses()

        if group.first:
            if plan.stage.keep == "best":
                best.take(saves, taught)
            finished.write(params, plan, taught, data.counts())
            told.files(finished.records(name))
            saves.clear()


def _rows(params: Params, plan: Recipe) -> list[Row]:
    file = paths.manifest(params.data.name, "train")
    rows = manifest.read(file)
    if plan.stage.epochs:
        batches.check(plan.section, plan.stage.batch_size, len(rows), params.train.processes, file)
    return rows


def _examples(params: Params, plan: Recipe, rows: list[Row], spec: Spec, group: Group) -> Examples:
    pairs, min_visible = {}, 0.0
    needs = Needs.of(plan.weights)
    if plan.local:
        folder = paths.pairs_dir("train")
        pairs = examples.read_pairs(folder, params.stage2.pairs)
        examples.check_pairs(rows, pairs, folder)
        min_visible = params.stage2.pairs.min_visible
        if not pairs and (needs.crops or needs.sentences):
            raise UserError(
                f"{folder}: no pair can be used; lower stage2.pairs.min_similarity (it is "
                f"{params.stage2.pairs.min_similarity}), or read in summary.json there why pairs were dropped"
            )
    limit, pictures = params.data.max_megapixels, None
    if params.train.packed and plan.stage.epochs:
        crops = {name: [pair.box for pair in own] for name, own in pairs.items()} if needs.crops else {}
        workers = params.train.loader_workers
        # Made by the first process; the others find it.
        if group.first:
            packed.prepare(rows, crops, spec, limit, workers)
        group.told(None)
        pictures = packed.prepare(rows, crops, spec, limit, workers)
    return Examples(rows, pairs, spec, needs, params.seed, limit, min_visible, pictures)


def _validation(params: Params, plan: Recipe, spec: Spec) -> Validation | None:
    file = paths.manifest(params.data.name, "val")
    rows = manifest.read(file)
    if not rows and (plan.stage.keep == "best" or plan.stage.patience):
        raise UserError(f"{plan.section}.keep best and patience need validation pictures; {file} has none")
    return Validation(rows, spec, params.data.max_megapixels, plan.stage.batch_size) if rows else None


def _check_agreed(taught: Learner, group: Group, saves: Checkpoints) -> None:
    """Refuse to go on where this process found another state than the first one did."""
    step = group.told(taught.step)
    if taught.step != step:
        raise UserError(
            f"{saves.folder}: process {group.rank} finds the state of step {taught.step}, the first one that "
            f"of step {step}; every machine must see the same work/"
        )


def _validates(taught: Learner, plan: Recipe, steps_per_epoch: int) -> bool:
    """Whether a validation is due now and was not made yet (a saved state may be from before it)."""
    every = steps_per_epoch * plan.stage.validate_epochs
    last = taught.validations[-1]["step"] if taught.validations else 0
    return taught.step > last and (taught.step % every == 0 or taught.step == taught.steps)


def _stop_if_wrong(taught: Learner, order: BatchSampler, rows: Sequence[Row], plan: Recipe) -> None:
    fault = taught.fault()
    if fault:
        ids = [rows[key.index].id for key in order.batch(fault[0])]
        raise learner.refusal(fault, plan.name, ids, plan.section)


def _save(saves: Checkpoints, taught: Learner, group: Group, stop: bool) -> None:
    try:
        if group.first:
            saves.save(taught.save())
    except UserError as error:
        if stop:
            raise
        log.warning("%s; training goes on", error)
    # The others wait: after a stop, the first process that ends has torchrun end all.
    group.told(None)


@contextlib.contextmanager
def _room(params: Params, plan: Recipe) -> Iterator[None]:
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
