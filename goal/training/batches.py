"""The order of the training pictures, and batches of them as tensors.

Letters: B pairs of a chunk, P of them with a usable pair, S side of the view, N patches of the view, T tokens
of a padded text.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from goal.datasets import prefetch
from goal.errors import UserError
from goal.model.network import Spec
from goal.runtime import signals
from goal.text import pad
from goal.training.examples import Examples, Fault, Key, Sample


class Batch(NamedTuple):
    """B pairs ready for one forward of each tower; whatever belongs to pair i keeps the number i."""

    texts: list[Int[Tensor, "_ T"]]  # groups of texts of similar length, zero padded to their longest
    places: Int[Tensor, " B+P+B"]  # of captions, sentences, short captions: their rows in all groups together
    images: UInt8[Tensor, "B+P 3 S S"]  # the whole views, then the crops
    rows: Int[Tensor, " P"]  # the pair that each crop and sentence belongs to
    patches: Bool[Tensor, "B N"]  # what the box touches in the whole view
    spans: Int[Tensor, "B 2"]  # the sentence's tokens in the caption, half open
    has_pair: Bool[Tensor, " B"]
    in_view: Bool[Tensor, " B"]  # TSL's image side counts
    in_context: Bool[Tensor, " B"]  # TSL's text side counts


@dataclass(frozen=True)
class FlatBatch:
    """The chunks of a batch, all their values in one tensor per dtype, for the way from a loader process.

    Each tensor that crosses between processes takes an open file of both until it is used, and a copy of its
    own to a GPU: dozens of chunks, each in its own tensors, would pass the 1,024 files that are usual.
    """

    values: dict[torch.dtype, Tensor]
    shapes: list[list[tuple[torch.dtype, torch.Size]]]  # of each chunk's tensors

    @classmethod
    def of(cls, chunks: Sequence[Batch]) -> "FlatBatch":
        tensors = [[*chunk.texts, *chunk[1:]] for chunk in chunks]
        shapes = [[(tensor.dtype, tensor.shape) for tensor in own] for own in tensors]
        flat: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for tensor in itertools.chain(*tensors):
            flat[tensor.dtype].append(tensor.flatten())
        return cls({dtype: torch.cat(parts) for dtype, parts in flat.items()}, shapes)

    def chunks(self) -> list[Batch]:
        """The chunks again, without a copy."""
        rest = dict(self.values)

        def take(dtype: torch.dtype, shape: torch.Size) -> Tensor:
            taken, rest[dtype] = rest[dtype].tensor_split([shape.numel()])
            return taken.view(shape)

        tensors = [[take(*one) for one in own] for own in self.shapes]
        others = len(Batch._fields) - 1  # the fields of one tensor
        return [Batch(own[:-others], *own[-others:]) for own in tensors]

    def to(self, device: torch.device) -> "FlatBatch":
        moved = {dtype: values.to(device, non_blocking=True) for dtype, values in self.values.items()}
        return FlatBatch(moved, self.shapes)

    def pin_memory(self) -> "FlatBatch":
        """Asked for by DataLoader."""
        return FlatBatch({dtype: values.pin_memory() for dtype, values in self.values.items()}, self.shapes)


def steps_per_epoch(pictures: int, batch_size: int) -> int:
    """Full batches that the pictures fill; see BatchSampler for the rest."""
    return pictures // batch_size


class BatchSampler(Sampler):
    """Keys of this process's part of every batch from `step` on, over all epochs.

    Each epoch is a permutation of its own, drawn from the seed. A batch that would not be full is left out:
    its pictures come in other epochs, and a contrastive loss over fewer pairs is another loss.
    """

    def __init__(
        self, size: int, batch_size: int, epochs: int, seed: int, step: int, rank: int, world: int
    ) -> None:
        self._size = size
        self._batch_size = batch_size
        self._steps_per_epoch = steps_per_epoch(size, batch_size)
        self._epochs = epochs
        self._seed = seed
        self._step = step
        self._rank = rank
        self._world = world
        self._drawn: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> list[Key]:
        """Keys of the whole batch of `step`, the processes' parts one after the other."""
        epoch, place = divmod(step, self._steps_per_epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._size)
        order = self._drawn[1]
        first = place * self._batch_size
        return [Key(epoch, int(index)) for index in order[first : first + self._batch_size]]

    def __len__(self) -> int:
        return self._epochs * self._steps_per_epoch - self._step

    def __iter__(self) -> Iterator[list[Key]]:
        own = self._batch_size // self._world
        for step in range(self._step, self._epochs * self._steps_per_epoch):
            yield self.batch(step)[self._rank * own : (self._rank + 1) * own]


def check(section: str, batch_size: int, pictures: int, world: int, source: object) -> None:
    """Raise UserError for a batch size that does not fit the pictures or processes; `section` names it."""
    if batch_size > pictures:
        raise UserError(
            f"{section}.batch_size {batch_size}: {source} has only {pictures} pictures; at most that many fit"
        )
    if batch_size % world:
        raise UserError(
            f"{section}.batch_size {batch_size}: does not divide among train.processes {world}; "
            f"{max(batch_size // world, 1) * world} would"
        )


class Collate:
    """Samples as Batches of at most `chunk_size` pairs (0: all in one); plain, for loader processes."""

    def __init__(self, spec: Spec, chunk_size: int) -> None:
        self._patches = (spec.image_size // spec.patch_size) ** 2
        self._chunk_size = chunk_size

    def __call__(self, samples: Sequence[Sample | Fault]) -> FlatBatch | Fault:
        """The first Fault among the samples, else their chunks in order."""
        for sample in samples:
            if isinstance(sample, Fault):
                return sample
        size = self._chunk_size or len(samples)
        parts = [samples[first : first + size] for first in range(0, len(samples), size)]
        return FlatBatch.of([self._batch(part) for part in parts])

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        crops = [sample.crop for sample in samples if sample.crop is not None]
        has_pair = torch.tensor(
            [sample.crop is not None or sample.sentence is not None for sample in samples]
        )
        nothing = torch.zeros(self._patches, dtype=torch.bool)
        texts = [sample.caption for sample in samples]
        texts += [sample.sentence for sample in samples if sample.sentence is not None]
        texts += [sample.short for sample in samples if sample.short is not None]
        # Halves of the captions and of the sentences: little padding, few calls of the tower.
        groups, places = _grouped(texts, math.ceil(len(samples) / 2))
        return Batch(
            texts=groups,
            places=places,
            images=torch.stack([sample.whole for sample in samples] + crops),
            rows=has_pair.nonzero()[:, 0],
            patches=torch.stack(
                [nothing if sample.patches is None else sample.patches for sample in samples]
            ),
            spans=torch.tensor([sample.span or (0, 0) for sample in samples]),
            has_pair=has_pair,
            in_view=torch.tensor([sample.patches is not None for sample in samples]),
            in_context=torch.tensor([sample.span is not None for sample in samples]),
        )


def _grouped(texts: Sequence[Tensor], size: int) -> tuple[list[Tensor], Tensor]:
    """Texts sorted by length, in padded groups of `size`; and the row of each text in all groups together."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    groups = [pad([texts[number] for number in group]) for group in prefetch.batches(order, size)]
    return groups, torch.tensor(order).argsort()


def load(
    examples: Examples, order: BatchSampler, collate: Collate, workers: int, device: torch.device
) -> Iterator[list[Batch] | Fault]:
    """The chunks of each batch of `order` on the device; `workers` processes read ahead (0: this one)."""
    loader = DataLoader(
        examples,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_quiet if workers else None,
        prefetch_factor=4 if workers else None,
        # Its own, so that starting workers takes nothing from the training's random numbers.
        generator=torch.Generator(),
    )
    return map(partial(_arrived, device), loader)


def _arrived(device: torch.device, sent: FlatBatch | Fault) -> list[Batch] | Fault:
    return sent if isinstance(sent, Fault) else sent.to(device).chunks()


def _quiet(worker: int) -> None:
    signals.ignored()
