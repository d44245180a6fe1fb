"""The largest batch that a training's device holds, found with made-up pairs as large as real ones can be."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from goal import devices, weights
from goal.config import Params
from goal.errors import UserError
from goal.model.network import Spec
from goal.training import recipe, step
from goal.training.batches import Collate
from goal.training.distributed import Group
from goal.training.examples import Needs, Sample
from goal.training.learner import Learner

log = logging.getLogger(__name__)

# What stays free: fragments, other batches' text lengths, the loader's processes.
USED = 0.9
# Where memory cannot be refused (a CPU) sizes double until so many bytes tell what a pair takes.
FEWEST, TELLING = 2, 256 * 2**20
LARGEST = 65536
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Fit:
    """The largest batch of one process, the memory it takes and the memory there is, in bytes."""

    batch_size: int
    memory: int
    limit: int


def run(params: Params, name: str) -> Fit:
    """Find the largest batch a process can train `name` with, with params.yaml's precision, chunks and so on.

    Takes whole steps, optimizer included, on random pictures and on texts that fill the context; writes
    nothing. Raises UserError where not even a pair fits.
    """
    plan = recipe.plan(params, name)
    model = weights.load(plan.start).to(plan.device).train()
    model.set_grad_checkpointing(params.train.checkpoint_activations)
    group = Group(0, 1, plan.device)
    taught = Learner(model, plan.stage, plan.weights, LARGEST, group)
    collate = Collate(model.spec, params.train.chunk_size)
    needs = Needs.of(plan.weights)

    def memory_of(size: int) -> int:
        devices.forget_peak(plan.device)
        chunks = collate([_sample(model.spec, needs)] * size).to(plan.device).chunks()
        taught.update(step.backward(model, chunks, plan.weights, group, plan.autocast))
        return devices.peak(plan.device)

    limit = int(_limit(plan.device) * USED)
    # The first step also makes the optimizer's state.
    memory_of(1)
    found = _on_gpu(memory_of, limit) if plan.device.type == "cuda" else _on_cpu(memory_of, limit)
    if found.batch_size < 1:
        raise UserError(
            f"{name}: not even one pair fits {limit / 2**30:.1f} GiB; set train.checkpoint_activations"
        )
    return found


def _on_gpu(memory_of: Callable[[int], int], limit: int) -> Fit:
    """Double until the device refuses, then halve the gap to an eighth of the size."""
    fits, taken, refused = 0, 0, LARGEST
    size = 1
    while size < refused and refused - fits > max(1, fits // 8):
        try:
            memory = memory_of(size)
        except torch.OutOfMemoryError:
            memory = limit + 1
        if memory > limit:
            refused = size
        else:
            fits, taken = size, memory
        size = fits * 2 if refused == LARGEST else (fits + refused) // 2
    return Fit(fits, taken, limit)


def _on_cpu(memory_of: Callable[[int], int], limit: int) -> Fit:
    """Reckon from small batches: a process that takes too much is killed, not refused."""
    first = last = memory_of(FEWEST)
    size = FEWEST
    while last - first < TELLING and size < LARGEST:
        size *= 2
        last = memory_of(size)
    a_pair = max(1, (last - first) // (size - FEWEST))
    fits = min(size + (limit - last) // a_pair, LARGEST)
    return Fit(fits, last + (fits - size) * a_pair, limit)


def _limit(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    own = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available + own
    # A container may be given less than the machine has.
    given = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return free if given == "max" else min(free, int(given))


def _sample(spec: Spec, needs: Needs) -> Sample:
    picture = torch.randint(256, (3, spec.image_size, spec.image_size), dtype=torch.uint8)
    patches = torch.ones((spec.image_size // spec.patch_size) ** 2, dtype=torch.bool)
    text = _text(spec)
    return Sample(
        whole=picture,
        caption=text,
        crop=picture if needs.crops else None,
        sentence=text if needs.sentences else None,
        patches=patches if needs.crops else None,
        span=(1, 2) if needs.sentences else None,
        short=text if needs.short else None,
    )


def _text(spec: Spec) -> Tensor:
    """A text that fills the context; CLIP's last two ids are BOS and EOS."""
    ids = torch.ones(spec.context_length, dtype=torch.long)
    ids[0], ids[-1] = spec.vocab_size - 2, spec.vocab_size - 1
    return ids
