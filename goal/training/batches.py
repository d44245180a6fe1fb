"""The order of the training pictures, and batches of them as tensors.

A pair is an image with its caption. A batch is split into chunks where train.chunk_size asks for it.
Letters: B pictures of a chunk, K local pairs of each at most, P local pairs that there are, S side of the
view, N patches of it, T tokens of a padded text.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from goal.datasets import prefetch
from goal.errors import UserError
from goal.model.network import Spec
from goal.runtime import signals
from goal.text import pad
from goal.training import alike
from goal.training.examples import Examples, Fault, Key, Sample


class Batch(NamedTuple):
    """A chunk: B pictures, ready for a forward of each tower; row i of each (B, ...) tensor is picture i."""

    texts: list[Int[Tensor, "_ T"]]  # groups of texts of similar length, zero padded to their longest
    places: Int[Tensor, " B+P+B"]  # of captions, sentences, short captions: their rows in all groups together
    images: UInt8[Tensor, "B+P 3 S S"]  # the whole views, then the crops
    rows: Int[Tensor, " P"]  # which of the B K pairs each crop and sentence belongs to
    patches: Bool[Tensor, "B K N"]  # those that the box touches in the whole view
    spans: Int[Tensor, "B K 2"]  # the sentence's tokens in the caption, half open
    has_pair: Bool[Tensor, "B K"]  # there is a region and sentence
    in_view: Bool[Tensor, "B K"]  # it counts in TSL's image side
    in_context: Bool[Tensor, "B K"]  # it counts in TSL's text side


@dataclass(frozen=True)
class FlatBatch:
    """The chunks of a batch as one tensor per dtype, for the transfer from a loader process to the device.

    A tensor sent between processes keeps a file open in both until it is freed, and needs its own copy to the
    GPU. Dozens of chunks of ten tensors each would exceed the usual limit of 1,024 open files.
    """

    values: dict[torch.dtype, Tensor]
    shapes: list[list[tuple[torch.dtype, torch.Size]]]  # of the tensors of each chunk

    @classmethod
    def of(cls, chunks: Sequence[Batch]) -> "FlatBatch":
        tensors = [[*chunk.texts, *chunk[1:]] for chunk in chunks]
        shapes = [[(tensor.dtype, tensor.shape) for tensor in fields] for fields in tensors]
        flat: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for tensor in itertools.chain(*tensors):
            flat[tensor.dtype].append(tensor.flatten())
        return cls({dtype: torch.cat(parts) for dtype, parts in flat.items()}, shapes)

    def chunks(self) -> list[Batch]:
        """The chunks, as views of `values`."""
        rest = dict(self.values)

        def take(dtype: torch.dtype, shape: torch.Size) -> Tensor:
            taken, rest[dtype] = rest[dtype].tensor_split([shape.numel()])
            return taken.view(shape)

        tensors = [[take(dtype, shape) for dtype, shape in fields] for fields in self.shapes]
        others = len(Batch._fields) - 1  # the fields of one tensor
        return [Batch(fields[:-others], *fields[-others:]) for fields in tensors]

    def to(self, device: torch.device) -> "FlatBatch":
        moved = {dtype: values.to(device, non_blocking=True) for dtype, values in self.values.items()}
        return FlatBatch(moved, self.shapes)

    def pin_memory(self) -> "FlatBatch":
        """DataLoader calls this where pin_memory is set."""
        return FlatBatch({dtype: values.pin_memory() for dtype, values in self.values.items()}, self.shapes)


def steps_per_epoch(pictures: int, batch_size: int) -> int:
    """Number of full batches per epoch; BatchSampler drops the last one where it is not full."""
    return pictures // batch_size


@dataclass(eq=False, repr=False)
class BatchSampler(Sampler):
    """The keys of this rank's part of every batch, from `step` to the end of the last epoch.

    Each epoch is its own permutation, which depends on the seed, in groups of alike captions where these are
    given. A last batch that is not full is dropped, because a contrastive loss over fewer pairs is another
    loss; other epochs drop other pictures.
    """

    pictures: int
    batch_size: int  # pairs, over all ranks
    epochs: int
    seed: int
    step: int
    rank: int
    world: int  # number of ranks
    captions: Float[Tensor, "N D"] | None = None  # unit embeddings of all pictures' captions
    neighbours: int = 0  # alike captions drawn into the batch of each picture
    _epoch: int = field(default=-1, init=False)
    _order: np.ndarray = field(init=False)  # the permutation of `_epoch`

    def batch(self, step: int) -> list[Key]:
        """Keys of the whole batch of `step` (from 0), in the order of the ranks."""
        epoch, number = divmod(step, steps_per_epoch(self.pictures, self.batch_size))
        if epoch != self._epoch:
            self._epoch = epoch
            draw = np.random.default_rng([self.seed, epoch])
            self._order = draw.permutation(self.pictures)
            if self.captions is not None:
                self._order = alike.grouped(self._order, self.captions, self.neighbours, draw)
        first = number * self.batch_size
        return [Key(epoch, int(index)) for index in self._order[first : first + self.batch_size]]

    def __len__(self) -> int:
        return self.epochs * steps_per_epoch(self.pictures, self.batch_size) - self.step

    def __iter__(self) -> Iterator[list[Key]]:
        own = self.batch_size // self.world
        for step in range(self.step, self.step + len(self)):
            yield self.batch(step)[self.rank * own : (self.rank + 1) * own]


def check(section: str, batch_size: int, pictures: int, world: int, source: object) -> None:
    """Raise UserError for a batch that has too few pictures or does not divide among the ranks.

    section: stage1 or stage2, and source: where the pictures are listed, both for the message.
    """
    if batch_size > pictures:
        raise UserError(
            f"{section}.batch_size {batch_size}: {source} has only {pictures} pictures; set at most that many"
        )
    if batch_size % world:
        raise UserError(
            f"{section}.batch_size {batch_size}: does not divide among train.processes {world}; "
            f"set {max(batch_size // world, 1) * world}"
        )


class Collate:
    """Collates samples into chunks of at most `chunk_size` pairs (0: one chunk), in a loader process."""

    def __init__(self, spec: Spec, chunk_size: int, per_step: int = 1) -> None:
        """per_step: K, local pairs of a picture at most."""
        self._patches = (spec.image_size // spec.patch_size) ** 2
        self._chunk_size = chunk_size
        self._per_step = per_step

    def __call__(self, samples: Sequence[Sample | Fault]) -> FlatBatch | Fault:
        """The chunks of the samples in order, or the first Fault among them."""
        for sample in samples:
            if isinstance(sample, Fault):
                return sample
        size = self._chunk_size or len(samples)
        return FlatBatch.of([self._batch(part) for part in prefetch.batches(samples, size)])

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        pairs = [pair for sample in samples for pair in sample.pairs]
        rows = [
            number * self._per_step + place
            for number, sample in enumerate(samples)
            for place in range(len(sample.pairs))
        ]
        texts = [sample.caption for sample in samples]
        texts += [pair.sentence for pair in pairs if pair.sentence is not None]
        texts += [sample.short for sample in samples if sample.short is not None]
        # Halves of the captions and of the sentences: little padding, few calls of the tower.
        groups, places = _grouped(texts, math.ceil(len(samples) / 2))
        crops = [pair.crop for pair in pairs if pair.crop is not None]
        slots = len(samples) * self._per_step
        patches = torch.zeros(slots, self._patches, dtype=torch.bool)
        spans = torch.zeros(slots, 2, dtype=torch.long)
        has_pair, in_view, in_context = torch.zeros(3, slots, dtype=torch.bool)
        for row, pair in zip(rows, pairs, strict=True):
            has_pair[row] = True
            if pair.patches is not None:
                patches[row], in_view[row] = pair.patches, True
            if pair.span is not None:
                spans[row], in_context[row] = torch.tensor(pair.span), True
        by_picture = (len(samples), self._per_step)
        return Batch(
            texts=groups,
            places=places,
            images=torch.stack([sample.whole for sample in samples] + crops),
            rows=torch.tensor(rows, dtype=torch.long),
            patches=patches.unflatten(0, by_picture),
            spans=spans.unflatten(0, by_picture),
            has_pair=has_pair.view(by_picture),
            in_view=in_view.view(by_picture),
            in_context=in_context.view(by_picture),
        )


def _grouped(texts: Sequence[Tensor], size: int) -> tuple[list[Tensor], Tensor]:
    """Texts sorted by length, in padded groups of `size`; and the row of each text in all groups together."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    groups = [pad([texts[number] for number in group]) for group in prefetch.batches(order, size)]
    return groups, torch.tensor(order).argsort()


def load(
    examples: Examples, sampler: BatchSampler, collate: Collate, workers: int, device: torch.device
) -> Iterator[list[Batch] | Fault]:
    """The chunks of each batch of `sampler`, on the device; `workers` processes prefetch (0: none)."""
    loader = DataLoader(
        examples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_signals if workers else None,
        prefetch_factor=4 if workers else None,
        # Its own generator: starting workers must not draw from the training's random numbers.
        generator=torch.Generator(),
    )
    return map(partial(_chunks_on, device), loader)


def _chunks_on(device: torch.device, batch: FlatBatch | Fault) -> list[Batch] | Fault:
    return batch if isinstance(batch, Fault) else batch.to(device).chunks()


def _ignore_signals(worker: int) -> None:
    signals.ignore()
