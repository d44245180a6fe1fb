"""The training of one model, from its start weights to the finished one, over any number of processes."""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from goal import (
    batches,
    boxes,
    clip,
    distributed,
    examples,
    finished,
    images,
    interrupts,
    layout,
    learner,
    losses,
    network,
    packing,
    recipe,
    schedule,
    step,
    tensorfiles,
    text,
    weights,
)
from goal.batches import Collate, Order
from goal.checkpoint import Checkpoints
from goal.config import Params
from goal.datasets import manifest
from goal.distributed import Group
from goal.errors import Interrupted, UserError
from goal.examples import Examples, Fault, Needs
from goal.learner import Learner
from goal.network import Spec
from goal.progress import Progress, Silent, Tracker
from goal.recipe import Recipe
from goal.validation import Validation

log = logging.getLogger(__name__)

# A checkpoint that other code made is not gone on from.
CODE = (batches, boxes, clip, examples, images, learner, losses, network, packing, schedule, step, text)


def check(params: Params, name: str) -> None:
    """Raise what `run` would raise for its parameters and hardware, before any process starts."""
    recipe.plan(params, name)


def run(params: Params, name: str, tracker: Tracker) -> None:
    """Train `name` (one of layout.TRAINED): write models/<name>/ and metrics/<name>/{train.json,loss.csv}.

    An unfinished run of the same parameters, data and code goes on. Raises Interrupted after a signal,
    the state saved; UserError for whatever the user can mend.
    """
    plan = recipe.plan(params, name)
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(distributed.group(plan.device, params.train.processes))
        stack.enter_context(_deterministic(plan.device))
        torch.manual_seed(params.seed)
        tracker = tracker if group.first else Silent()
        model = weights.load(plan.start).to(group.device).train()
        data, validation = _data(params, plan, model.spec), _validation(params, plan, model.spec)
        size = plan.stage.batch_size
        batches.check(plan.section, size, len(data), group.world, layout.manifest(params.data.name, "train"))
        steps_an_epoch = len(data) // size
        recipe.check_steps(plan, plan.stage.epochs * steps_an_epoch)
        model.set_grad_checkpointing(params.train.checkpoint_activations)
        taught = Learner(model, plan.stage, plan.weights, plan.stage.epochs * steps_an_epoch, group)
        if taught.steps == 0:
            log.info("%s: %s.epochs is 0, the weights of %s are passed on", name, plan.section, plan.start)
            finished.write(params, plan, taught, data.counts())
            return

        saves = Checkpoints(
            layout.work_dir(f"train-{name}"), _identity(params, plan, data), params.train.keep_checkpoints
        )
        if group.first:
            stack.enter_context(saves.held())
        asked = stack.enter_context(interrupts.taken_down())
        saved = saves.restore()
        if saved:
            taught.restore(saved)
            log.info("%s: goes on after step %d of %d", name, taught.step, taught.steps)
        order = Order(len(data), size, plan.stage.epochs, params.seed, taught.step, group.rank, group.world)
        collate = Collate((model.spec.image_size // model.spec.patch_size) ** 2, params.train.chunk_size)
        coming = iter(
            batches.load(data, order, collate, params.train.loader_workers, group.device.type == "cuda")
        )
        wrapped = _wrapped(model, params, group)
        progress = stack.enter_context(Progress(name, taught.step, taught.steps, size, group.first))
        saved_at = time.monotonic()
        measured: list[torch.Tensor] = []

        while True:
            if _validates(taught, plan, steps_an_epoch):
                _validate(taught, validation, saves, tracker, plan, group)
            if taught.step == taught.steps or 0 < plan.stage.patience <= taught.stale:
                break
            if group.any(asked()):
                _save(saves, taught, group)
                raise Interrupted(
                    f"{name}: saved after step {taught.step} of {taught.steps}; the same command goes on"
                )

            began = time.monotonic()
            chunks = next(coming)
            progress.waited(time.monotonic() - began)
            if isinstance(chunks, Fault):
                raise UserError(f"{name}: {chunks.message}")
            chunks = [chunk.to(group.device) for chunk in chunks]
            values = step.backward(wrapped, chunks, plan.weights, group, plan.autocast)
            measured.append(taught.update(values))

            # On a GPU the values are looked at now and then only: each look waits for all work under way.
            logs = taught.step % params.train.log_every == 0 or taught.step == taught.steps
            if logs or group.device.type == "cpu":
                _stop_if_wrong(taught, order, data, plan)
            if logs:
                _tell(taught, measured, tracker, progress)
                measured.clear()
            if group.first and time.monotonic() - saved_at > params.train.checkpoint_minutes * 60:
                _stop_if_wrong(taught, order, data, plan)
                _save_if_possible(saves, taught)
                saved_at = time.monotonic()

        if group.first:
            if plan.stage.keep == "best":
                model.load_state_dict(tensorfiles.read(saves.folder / _best_file(taught))[0])
            finished.write(params, plan, taught, data.counts())
            for path in finished.records(name):
                tracker.log_artifact(path)
            saves.clear()


def _data(params: Params, plan: Recipe, spec: Spec) -> Examples:
    rows = manifest.read(layout.manifest(params.data.name, "train"))
    pairs, min_visible = None, 0.0
    if plan.local:
        folder = layout.pairs_dir("train")
        pairs = examples.read_pairs(folder, params.stage2.pairs)
        examples.check_pairs(rows, pairs, folder)
        min_visible = params.stage2.pairs.min_visible
    needs = Needs.of(plan.weights)
    if (needs.crops or needs.sentences) and not pairs:
        raise UserError(
            f"{layout.pairs_dir('train')}: no pair can be used (stage2.pairs.min_similarity is "
            f"{params.stage2.pairs.min_similarity}); lower it, or read in summary.json why pairs were dropped"
        )
    return Examples(rows, pairs, spec, needs, params.seed, params.data.max_megapixels, min_visible)


def _validation(params: Params, plan: Recipe, spec: Spec) -> Validation | None:
    file = layout.manifest(params.data.name, "val")
    rows = manifest.read(file)
    if not rows and (plan.stage.keep == "best" or plan.stage.patience):
        raise UserError(f"{plan.section}.keep best and patience need validation pictures; {file} has none")
    if not rows:
        return None
    return Validation(rows, spec, params.data.max_megapixels, plan.stage.batch_size)


def _identity(params: Params, plan: Recipe, data: Examples) -> dict[str, Any]:
    """All that decides the result, by name; a run goes on only where all of it is the same."""
    files = [layout.manifest(params.data.name, split) for split in ("train", "val")]
    if plan.local:
        files += sorted(layout.pairs_dir("train").glob("shard-*.parquet"))
    code = hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in CODE)).hexdigest()
    return {
        "name": plan.name,
        **plan.decisive(params),
        **{str(file): tensorfiles.digest(file) for file in files},
        str(plan.start): weights.digest(plan.start),
        "code": code,
        "torch": torch.__version__,
    }


def _wrapped(model: nn.Module, params: Params, group: Group) -> nn.Module:
    if params.train.compile:
        model = torch.compile(model, dynamic=True)
    if group.world == 1:
        return model
    return DistributedDataParallel(model, [group.device] if group.device.type == "cuda" else None)


def _validates(taught: Learner, plan: Recipe, steps_an_epoch: int) -> bool:
    """Whether a validation is due now and was not made yet (a saved state may be from before it)."""
    every = steps_an_epoch * plan.stage.validate_epochs
    last = taught.validations[-1]["step"] if taught.validations else 0
    return taught.step > last and (taught.step % every == 0 or taught.step == taught.steps)


def _validate(
    taught: Learner,
    validation: Validation | None,
    saves: Checkpoints,
    tracker: Tracker,
    plan: Recipe,
    group: Group,
) -> None:
    if validation is None:
        return
    found = group.told(validation.measure(taught.model, plan.autocast, taught.step) if group.first else None)
    taught.validations.append(found)
    if not group.first:
        return
    named = {
        f"val/{way}/{k}": value
        for way in ("image_to_text", "text_to_image")
        for k, value in found[way].items()
    }
    tracker.log_metrics(named | {"val/recall": found["recall"]}, taught.step)
    log.info("%s: step %d: validation R@1 %.2f %%", plan.name, taught.step, found["recall"])
    if plan.stage.keep == "best" and taught.best is found:
        tensorfiles.write(saves.folder / _best_file(taught), taught.model.state_dict(), {})


def _best_file(taught: Learner) -> str:
    # Named by its step: a kill may leave a later one than the state that is gone on from knows.
    return f"best-{taught.best['step']}.safetensors"


def _stop_if_wrong(taught: Learner, order: Order, data: Examples, plan: Recipe) -> None:
    fault = taught.fault()
    if fault:
        ids = [data.rows[key.index].id for key in order.batch(fault[0])]
        raise learner.refusal(fault, plan.name, ids, plan.section)


def _tell(taught: Learner, measured: Sequence[torch.Tensor], tracker: Tracker, progress: Progress) -> None:
    names = [*taught.names, learner.GRADIENT]
    rows = torch.stack(list(measured)).tolist()
    for number, row in enumerate(rows, taught.step - len(rows) + 1):
        values = {f"loss/{name}": value for name, value in zip(taught.names, row[:-1], strict=True)}
        tracker.log_metrics(values | {"gradient_norm": row[-1], "lr": taught.rate(number - 1)}, number)
    speed = progress.speed(taught.step)
    tracker.log_metrics(speed, taught.step)
    progress.show(taught.step, dict(zip(names, rows[-1], strict=True)), speed)


def _save(saves: Checkpoints, taught: Learner, group: Group) -> None:
    if group.first:
        saves.save(taught.save())
    # The others wait: the first that ends has torchrun end all.
    group.told(None)


def _save_if_possible(saves: Checkpoints, taught: Learner) -> None:
    try:
        saves.save(taught.save())
    except UserError as error:
        log.warning("%s; training goes on", error)


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, the same bits in every run; a GPU would pay for it with speed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
