"""The training loop of one model: resume, then validate, save, step and log until the last step.

Every process of a training runs this; only the first one (rank 0) writes files and logs.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from goal import weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import Interrupted, UserError
from goal.model.network import Spec
from goal.training import alike, batches, examples, finished, learner, packed, step
from goal.training.batches import Batch, BatchSampler, Collate
from goal.training.checkpoint import Checkpoints
from goal.training.distributed import Group
from goal.training.examples import Examples, Fault, Needs
from goal.training.learner import Learner
from goal.training.metrics_buffer import MetricsBuffer
from goal.training.plan import Plan
from goal.training.progress import Progress, Silent, Tracker
from goal.training.validation import Validation

log = logging.getLogger(__name__)


class Trainer:
    """One training: its data, its learner, and the loop over its steps.

    rows: the training split. stop_requested: whether a signal asked the training to stop.
    """

    def __init__(
        self,
        params: Params,
        plan: Plan,
        rows: Sequence[Row],
        group: Group,
        tracker: Tracker,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.params, self.plan, self.rows, self.group = params, plan, rows, group
        self.tracker = tracker if group.is_first else Silent()
        self.stop_requested = stop_requested
        torch.manual_seed(params.seed)
        model = weights.load(plan.start).to(group.device).train()
        model.set_grad_checkpointing(params.train.checkpoint_activations)
        self.data = _examples(params, plan, rows, model.spec, group)
        self.steps_per_epoch = batches.steps_per_epoch(len(rows), plan.stage.batch_size)
        steps = plan.stage.epochs * self.steps_per_epoch
        self.unsaved_best: dict[str, Tensor] | None = None
        self.learner = Learner(model, plan.stage, plan.loss_weights, steps, group)
        self.wrapped = step.wrapped(model, params.train.compile, group)
        self.checkpoints = Checkpoints(
            paths.work_dir(f"train-{plan.name}"), plan.identity(params), params.train.keep_checkpoints
        )

    def run(self) -> None:
        """Train from the last checkpoint to the end; write models/<name>/ and metrics/<name>/.

        Raises Interrupted after a signal, with the state saved.
        """
        plan, group = self.plan, self.group
        if self.learner.steps == 0:
            log.info("%s: %s.epochs is 0: copying the weights of %s", plan.name, plan.section, plan.start)
            self._write_results()
            return
        self.validation = _validation(self.params, plan, self.learner.model.spec)
        with self.checkpoints.locked() if group.is_first else nullcontext():
            self._captions = self._embed_captions()
            self._resume()
            self._start_loading()
            now, steps, size = self.learner.step, self.learner.steps, plan.stage.batch_size
            with Progress(plan.name, now, steps, size, group.is_first) as self.progress:
                self.metrics = MetricsBuffer(self.learner, self.tracker, self.progress)
                self.fit()
            if group.is_first:
                if plan.stage.keep == "best":
                    best = self.unsaved_best or self.checkpoints.load_best(self.learner.best["step"])
                    self.learner.result.load_state_dict(best)
                self._write_results()
                self.checkpoints.clear()

    def fit(self) -> None:
        """Train to the last step, or until validations stop improving; every step's losses are logged."""
        try:
            while True:
                if self.should_validate():
                    self.validate()
                if self.learner.step == self.learner.steps or self.out_of_patience():
                    break
                self.save_if_due()
                self.train_step()
                # On a GPU, losses are read only when they are logged: a read waits for all queued work.
                if self.should_log(self.learner.step) or self.group.device.type == "cpu":
                    self.check_finite()
                if self.should_log(self.learner.step):
                    self.metrics.flush()
            self.check_finite()
        finally:
            # Also where it stops early, and above all where a loss is not finite.
            self.metrics.flush()

    def train_step(self) -> None:
        """One optimizer step: load a batch, compute the gradient, update. Does not wait for a GPU."""
        chunks = self.next_batch()
        norms = {} if self.should_log(self.learner.step + 1) else None
        weights, autocast = self.plan.loss_weights, self.plan.autocast
        terms = step.backward(self.wrapped, chunks, weights, self.group, autocast, norms)
        self.metrics.add(self.learner.update(terms), norms)
        if self.group.device.type == "cuda":
            self.step_done = torch.cuda.current_stream().record_event()

    def next_batch(self) -> list[Batch]:
        """The chunks of the next batch, on the device; UserError for a picture that cannot be read."""
        began = time.monotonic()
        chunks = next(self.batches)
        # A GPU that is still busy with the last step did not wait for this batch.
        if self.step_done is None or self.step_done.query():
            self.progress.waited(time.monotonic() - began)
        if isinstance(chunks, Fault):
            raise UserError(f"{self.plan.name}: {chunks.message}")
        return chunks

    def should_validate(self) -> bool:
        """Every stage.validate_epochs and at the last step, unless already done before a resume."""
        last = self.learner.validations[-1]["step"] if self.learner.validations else 0
        every, now = self.steps_per_epoch * self.plan.stage.validate_epochs, self.learner.step
        return self.validation is not None and now > last and (now % every == 0 or now == self.learner.steps)

    def validate(self) -> None:
        """Measure and log recall on the validation split; with keep: best, save the best weights."""
        found = None
        if self.group.is_first:
            found = self.validation.measure(self.learner.result, self.plan.autocast, self.learner.step)
        self.learner.validations.append(self.group.broadcast(found))
        self.metrics.log_validation()
        is_best = self.learner.validations_since_best == 0
        if self.group.is_first and self.plan.stage.keep == "best" and is_best:
            self.unsaved_best = self.learner.result.state_dict()
            try:
                self.save_best()
            except UserError as error:
                # A copy: the next steps change the tensors of the state dict.
                self.unsaved_best = {name: value.cpu().clone() for name, value in self.unsaved_best.items()}
                log.warning("%s; the best weights stay in memory until the next checkpoint", error)

    def save_best(self) -> None:
        """Write the weights of the best validation if the disk has not taken them yet."""
        if self.unsaved_best:
            self.checkpoints.save_best(self.unsaved_best, self.learner.best["step"])
            self.unsaved_best = None

    def out_of_patience(self) -> bool:
        """Whether stage.patience validations in a row were no better than the best one; 0: never."""
        return 0 < self.plan.stage.patience <= self.learner.validations_since_best

    def should_log(self, now: int) -> bool:
        """Every train.log_every steps and at the last step; now: steps done."""
        return now % self.params.train.log_every == 0 or now == self.learner.steps

    def check_finite(self) -> None:
        """Raise UserError, naming the batch, where a loss or gradient is not finite; waits for a GPU."""
        fault = self.learner.fault()
        if fault:
            ids = [self.rows[key.index].id for key in self.sampler.batch(fault[0])]
            raise learner.not_finite_error(fault, self.plan.name, ids, self.plan.section)

    def save_if_due(self) -> None:
        """Save every train.checkpoint_minutes. After a signal to any process, save and raise Interrupted."""
        age = time.monotonic() - self.saved_at
        due = self.group.is_first and age > self.params.train.checkpoint_minutes * 60
        stop, save = self.group.any(self.stop_requested(), due)
        if stop or save:
            self.check_finite()
            # A training that resumes from this checkpoint logs no earlier step again.
            self.metrics.flush()
            self.save(required=stop)
        if stop:
            raise Interrupted(
                f"{self.plan.name}: saved after step {self.learner.step} of {self.learner.steps}; run the "
                "same command to resume"
            )

    def save(self, required: bool) -> None:
        """Write a checkpoint. Where that fails and it is not `required`, log a warning and train on."""
        try:
            if self.group.is_first:
                # First: the checkpoint names the step of the best weights.
                self.save_best()
                self.checkpoints.save(self.learner.state())
        except UserError as error:
            if required:
                raise
            log.warning("%s; training continues", error)
        # Wait for the first process: after a signal, a process that exits makes torchrun stop all others.
        self.group.broadcast(None)
        self.saved_at = time.monotonic()

    def _embed_captions(self) -> Tensor | None:
        """The captions' embeddings by the network before training; None for random batches."""
        if not self.plan.stage.neighbours:
            return None
        captions, file = [row.captions[0] for row in self.rows], self.checkpoints.folder / alike.FILE
        # The first process writes them, once; the others wait and then read them.
        if self.group.is_first:
            alike.embeddings(self.learner.model, captions, file)
        self.group.broadcast(None)
        return alike.embeddings(self.learner.model, captions, file)

    def _resume(self) -> None:
        state = self.checkpoints.restore()
        if state:
            self.learner.load(state)
            log.info("%s: resuming after step %d of %d", self.plan.name, state.step, self.learner.steps)
        self.saved_at = time.monotonic()
        step_of_first = self.group.broadcast(self.learner.step)
        if self.learner.step != step_of_first:
            raise UserError(
                f"{self.checkpoints.folder}: process {self.group.rank} finds the checkpoint of step "
                f"{self.learner.step}, the first process that of step {step_of_first}; put work/ on a disk "
                "that all machines share"
            )

    def _start_loading(self) -> None:
        stage, group = self.plan.stage, self.group
        self.sampler = BatchSampler(
            len(self.rows), stage.batch_size, stage.epochs, self.params.seed, self.learner.step,
            group.rank, group.world, self._captions, stage.neighbours,
        )  # fmt: skip
        collate = Collate(self.learner.model.spec, self.params.train.chunk_size, self.data.per_step)
        self.batches = batches.load(
            self.data, self.sampler, collate, self.params.train.loader_workers, group.device
        )
        self.step_done: torch.cuda.Event | None = None

    def _write_results(self) -> None:
        if self.group.is_first:
            finished.write(self.params, self.plan, self.learner, self.data.counts())


def _examples(params: Params, plan: Plan, rows: list[Row], spec: Spec, group: Group) -> Examples:
    pairs, min_visible, per_step = {}, 0.0, 1
    needs = Needs.of(plan.loss_weights)
    if plan.local:
        folder, choice = paths.pairs_dir("train"), plan.stage.pairs
        pairs = examples.read_pairs(folder, choice)
        min_visible, per_step = choice.min_visible, choice.per_step
        examples.check_pairs(rows, pairs, folder)
        if not pairs and (needs.crops or needs.sentences):
            raise UserError(
                f"{folder}: no pair can be used; lower {plan.section}.pairs.min_similarity (it is "
                f"{choice.min_similarity}), or read in summary.json there why pairs were dropped"
            )
        if pairs and group.is_first and examples.are_whole_captions(rows, pairs):
            log.warning(
                "%s: every sentence is a whole caption: tsl_text compares a text with itself, and the local "
                "terms see no details; captions of several sentences are what they are for",
                plan.name,
            )
    limit, pictures = params.data.max_megapixels, None
    if params.train.packed and plan.stage.epochs:
        crops = {name: [pair.box for pair in own] for name, own in pairs.items()} if needs.crops else {}
        workers = params.train.loader_workers
        # The first process packs the pictures; the others wait and then find them packed.
        if group.is_first:
            packed.prepare(rows, crops, spec, limit, workers)
        group.broadcast(None)
        pictures = packed.prepare(rows, crops, spec, limit, workers)
    file, share = paths.manifest(params.data.name, "short_train"), plan.stage.short_share
    own = {row.id: row.captions for row in manifest.read(file)} if file.exists() else {}
    short = own if needs.short or share else {}
    return Examples(
        rows, pairs, spec, needs, params.seed, limit, min_visible, pictures, per_step, share, short
    )


def _validation(params: Params, plan: Plan, spec: Spec) -> Validation | None:
    file = paths.manifest(params.data.name, "val")
    rows = manifest.read(file)
    plan.check_validation(len(rows), file)
    return Validation(rows, spec, params.data.max_megapixels, plan.stage.batch_size) if rows else None
