"""Find the largest batch that fits the training device, on random pairs of the largest possible size."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from goal import weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.errors import UserError
from goal.model.network import Spec
from goal.runtime import devices
from goal.training import step
from goal.training.batches import Collate
from goal.training.distributed import Group
from goal.training.examples import LocalPair, Needs, Sample
from goal.training.learner import Learner
from goal.training.plan import Plan

log = logging.getLogger(__name__)

# The share of the memory to use; the rest is for fragmentation and for the loader's processes.
USED = 0.9
# On a CPU, which refuses no memory, sizes double until so many bytes show what a pair takes.
FEWEST, TELLING = 2, 256 * 2**20
STEPS = 1_000_000  # of a training long enough for any warm-up
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Fit:
    """The largest batch of one process, the memory that it takes and the limit, in bytes."""

    batch_size: int
    memory: int
    limit: int


def run(params: Params, name: str) -> Fit:
    """Find the largest batch per process for the training `name`, with its settings in params.yaml.

    Runs full training steps, optimizer included, on random pictures and on texts that fill the context;
    writes nothing. Raises UserError if not even one pair fits.
    """
    plan = Plan.of(params, name)
    most = _most(params)
    model = weights.load(plan.start).to(plan.device).train()
    model.set_grad_checkpointing(params.train.checkpoint_activations)
    group = Group(0, 1, plan.device)
    wrapped = step.wrapped(model, params.train.compile, group)
    learner = Learner(model, plan.stage, plan.loss_weights, STEPS, group)
    per_step = params.stage2.pairs.per_step if plan.local else 1
    collate = Collate(model.spec, params.train.chunk_size, per_step)
    needs = Needs.of(plan.loss_weights)

    def memory_of(size: int) -> int:
        # A step that ran out of memory leaves gradients.
        model.zero_grad()
        devices.forget_peak(plan.device)
        if params.train.processes > 1:
            # DDP (step.wrapped) keeps its gradient buckets between steps; the gradients are views of them.
            for value in model.parameters():
                value.grad = torch.zeros_like(value)
        sample = _sample(model.spec, needs, per_step)
        chunks = collate([sample] * size).to(plan.device).chunks()
        learner.update(step.backward(wrapped, chunks, plan.loss_weights, group, plan.autocast))
        return devices.peak(plan.device)

    limit = int(_limit(plan.device) * USED)
    # The first step also allocates the optimizer's state.
    memory_of(1)
    search = _on_gpu if plan.device.type == "cuda" else _on_cpu
    found = search(memory_of, limit, most)
    if found.batch_size < 1:
        raise UserError(
            f"{name}: not even one pair fits {limit / 2**30:.1f} GiB; set train.checkpoint_activations: true"
        )
    if found.batch_size == most:
        log.info("%s: all training pictures fit in one batch", name)
    return found


def _most(params: Params) -> int:
    """Pairs per process if all training pictures are in one batch."""
    file = paths.manifest(params.data.name, "train")
    most = len(manifest.read(file)) // params.train.processes
    if most < 1:
        raise UserError(f"train.processes {params.train.processes}: more than the pictures of {file}")
    return most


def _on_gpu(memory_of: Callable[[int], int], limit: int, most: int) -> Fit:
    """Double the size until memory runs out, then bisect to within an eighth; never above `most`."""
    fits, taken, refused = 0, 0, most + 1
    size = 1
    while fits < most and (refused > most or refused - fits > max(1, fits // 8)):
        try:
            memory = memory_of(size)
        except torch.OutOfMemoryError:
            memory = limit + 1
        if memory > limit:
            refused = size
        else:
            fits, taken = size, memory
        size = min(fits * 2, most) if refused > most else (fits + refused) // 2
    return Fit(fits, taken, limit)


def _on_cpu(memory_of: Callable[[int], int], limit: int, most: int) -> Fit:
    """Estimate from small batches: a process that takes too much is killed, not refused."""
    first = last = memory_of(FEWEST)
    size = FEWEST
    while last - first < TELLING and size < most:
        size = min(size * 2, most)
        last = memory_of(size)
    per_pair = max(1, (last - first) // max(1, size - FEWEST))
    fits = min(size + (limit - last) // per_pair, most)
    return Fit(fits, last + (fits - size) * per_pair, limit)


def _limit(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    own = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available + own
    # A container may have less memory than the machine.
    own_limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return free if own_limit == "max" else min(free, int(own_limit))


def _sample(spec: Spec, needs: Needs, per_step: int) -> Sample:
    picture = torch.randint(256, (3, spec.image_size, spec.image_size), dtype=torch.uint8)
    patches = torch.ones((spec.image_size // spec.patch_size) ** 2, dtype=torch.bool)
    text = _text(spec)
    pair = LocalPair(
        crop=picture if needs.crops else None,
        sentence=text if needs.sentences else None,
        patches=patches if needs.crops else None,
        span=(1, 2) if needs.sentences else None,
    )
    return Sample(
        whole=picture,
        caption=text,
        pairs=[pair] * per_step,
        short=text if needs.short else None,
    )


def _text(spec: Spec) -> Tensor:
    """A text that fills the context; the last two ids of CLIP's vocabulary are BOS and EOS."""
    ids = torch.ones(spec.context_length, dtype=torch.long)
    ids[0], ids[-1] = spec.vocab_size - 2, spec.vocab_size - 1
    return ids
