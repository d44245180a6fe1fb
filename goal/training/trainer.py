"""The training loop of one model: resume, then validate, save, step and log until it is done.

With several processes, all of them run this; the first one writes the files and logs.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from goal import weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import Interrupted, UserError
from goal.model.network import Spec
from goal.training import batches, best, examples, finished, learner, packed, step
from goal.training.batches import Batch, Collate, Order
from goal.training.checkpoint import Checkpoints
from goal.training.distributed import Group
from goal.training.examples import Examples, Fault, Needs
from goal.training.learner import Learner
from goal.training.progress import Progress, Silent, Tracker
from goal.training.recipe import Recipe
from goal.training.telling import Telling
from goal.training.validation import Validation

log = logging.getLogger(__name__)


class Trainer:
    """One training in this process: its data, its learner, and the loop over its steps."""

    def __init__(
        self,
        params: Params,
        plan: Recipe,
        rows: Sequence[Row],
        group: Group,
        tracker: Tracker,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.params, self.plan, self.rows, self.group = params, plan, rows, group
        self.tracker = tracker if group.first else Silent()
        self.stop_requested = stop_requested
        torch.manual_seed(params.seed)
        model = weights.load(plan.start).to(group.device).train()
        model.set_grad_checkpointing(params.train.checkpoint_activations)
        self.data = _examples(params, plan, rows, model.spec, group)
        self.steps_per_epoch = batches.steps_an_epoch(len(rows), plan.stage.batch_size)
        steps = plan.stage.epochs * self.steps_per_epoch
        self.learner = Learner(model, plan.stage, plan.weights, steps, group)
        self.wrapped = step.wrapped(model, params.train.compile, group)
        self.checkpoints = Checkpoints(
            paths.work_dir(f"train-{plan.name}"), plan.identity(params), params.train.keep_checkpoints
        )

    def run(self) -> None:
        """Train from the last checkpoint to the end; write models/<name>/ and metrics/<name>/.

        Raises Interrupted after a signal, the state saved.
        """
        if self.learner.steps == 0:
            name, section, start = self.plan.name, self.plan.section, self.plan.start
            log.info("%s: %s.epochs is 0, the weights of %s are passed on", name, section, start)
            self._write_results()
            return
        self.validation = _validation(self.params, self.plan, self.learner.model.spec)
        with self.checkpoints.held() if self.group.first else nullcontext():
            self._resume()
            self._start_loading()
            with self._progress() as self.progress:
                self.metrics = Telling(self.learner, self.tracker, self.progress)
                self.fit()
            if self.group.first and self.plan.stage.keep == "best":
                best.take(self.checkpoints, self.learner)
            self._write_results()
            if self.group.first:
                self.checkpoints.clear()

    def fit(self) -> None:
        """The loop, from the learner's step to the last one or until validation stops improving."""
        while True:
            if self.should_validate():
                self.validate()
            if self.learner.step == self.learner.steps or self.out_of_patience():
                return
            self.save_if_due()
            self.train_step()
            # On a GPU the losses are read only when they are logged: each read waits for all queued work.
            if self.should_log() or self.group.device.type == "cpu":
                self.check_finite()
            if self.should_log():
                self.metrics.losses()

    def train_step(self) -> None:
        """One optimizer step: a batch, its gradient, the update. Does not wait for a GPU."""
        chunks = self.next_batch()
        terms = step.backward(self.wrapped, chunks, self.plan.weights, self.group, self.plan.autocast)
        self.metrics.step(self.learner.update(terms))
        if self.group.device.type == "cuda":
            self.step_done = torch.cuda.current_stream().record_event()

    def next_batch(self) -> list[Batch]:
        """The chunks of the next batch, on the device; UserError for a picture that cannot be read."""
        began = time.monotonic()
        chunks = next(self.batches)
        # While a GPU still works on the step before, it has not waited for data.
        if self.step_done is None or self.step_done.query():
            self.progress.waited(time.monotonic() - began)
        if isinstance(chunks, Fault):
            raise UserError(f"{self.plan.name}: {chunks.message}")
        return chunks

    def should_validate(self) -> bool:
        """Whether a validation is due and not done yet: a checkpoint may be from just before it."""
        done = self.learner.validations[-1]["step"] if self.learner.validations else 0
        every, now = self.steps_per_epoch * self.plan.stage.validate_epochs, self.learner.step
        return self.validation is not None and now > done and (now % every == 0 or now == self.learner.steps)

    def validate(self) -> None:
        """Measure recall on the validation split in the first process, log it, and keep the best weights."""
        found = None
        if self.group.first:
            found = self.validation.measure(self.learner.model, self.plan.autocast, self.learner.step)
        self.learner.validations.append(self.group.told(found))
        self.metrics.validation()
        if self.group.first and self.plan.stage.keep == "best" and self.learner.stale == 0:
            best.keep(self.checkpoints, self.learner)

    def out_of_patience(self) -> bool:
        """Whether as many validations in a row as `patience` allows have not improved; 0: never."""
        return 0 < self.plan.stage.patience <= self.learner.stale

    def should_log(self) -> bool:
        """Every train.log_every steps, and at the last one."""
        now = self.learner.step
        return now % self.params.train.log_every == 0 or now == self.learner.steps

    def check_finite(self) -> None:
        """Raise UserError with the batch's ids where a loss or gradient was not finite; waits for a GPU."""
        fault = self.learner.fault()
        if fault:
            ids = [self.rows[key.index].id for key in self.order.batch(fault[0])]
            raise learner.refusal(fault, self.plan.name, ids, self.plan.section)

    def save_if_due(self) -> None:
        """Save every train.checkpoint_minutes; after a signal to any process, save and raise Interrupted."""
        age = time.monotonic() - self.saved_at
        due = self.group.first and age > self.params.train.checkpoint_minutes * 60
        stop, save = self.group.any(self.stop_requested(), due)
        if stop or save:
            self.check_finite()
            self.metrics.losses()
            self.save(required=stop)
        if stop:
            raise Interrupted(
                f"{self.plan.name}: saved after step {self.learner.step} of {self.learner.steps}; the same "
                "command goes on"
            )

    def save(self, required: bool) -> None:
        """Write a checkpoint; where the disk refuses one that is not `required`, training goes on."""
        try:
            if self.group.first:
                self.checkpoints.save(self.learner.save())
        except UserError as error:
            if required:
                raise
            log.warning("%s; training goes on", error)
        # The others wait: after a signal, the first process that ends makes torchrun end all.
        self.group.told(None)
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        saved = self.checkpoints.restore()
        if saved:
            self.learner.restore(saved)
            log.info("%s: goes on after step %d of %d", self.plan.name, saved.step, self.learner.steps)
        self.saved_at = time.monotonic()
        first = self.group.told(self.learner.step)
        if self.learner.step != first:
            raise UserError(
                f"{self.checkpoints.folder}: process {self.group.rank} finds the checkpoint of step "
                f"{self.learner.step}, the first process that of step {first}; every machine must see the "
                "same work/"
            )

    def _start_loading(self) -> None:
        stage, group = self.plan.stage, self.group
        self.order = Order(
            len(self.rows), stage.batch_size, stage.epochs, self.params.seed, self.learner.step,
            group.rank, group.world,
        )  # fmt: skip
        collate = Collate(self.learner.model.spec, self.params.train.chunk_size)
        self.batches = batches.load(
            self.data, self.order, collate, self.params.train.loader_workers, group.device
        )
        self.step_done: torch.cuda.Event | None = None

    def _progress(self) -> Progress:
        size, now, steps = self.plan.stage.batch_size, self.learner.step, self.learner.steps
        return Progress(self.plan.name, now, steps, size, self.group.first)

    def _write_results(self) -> None:
        if self.group.first:
            finished.write(self.params, self.plan, self.learner, self.data.counts())
            for file in finished.records(self.plan.name):
                self.tracker.log_artifact(file)


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
