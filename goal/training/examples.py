"""What one picture gives a training step: its views, its tokenised texts, and a mined pair where it has one.

Letters: S side of the view in pixels, N patches of the view, T tokens of a text.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from goal import boxes, clip, text
from goal.boxes import BoxTuple, View
from goal.config import PairChoice
from goal.datasets import images, manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.mining.mined import PAIRS, SIDES
from goal.model.network import Spec
from goal.training.packed import Pictures


class Key(NamedTuple):
    """Which picture, in which epoch: all that decides a sample, so that it is the same after a restart."""

    epoch: int
    index: int


class LocalPair(NamedTuple):
    """A region and sentence of a picture; None where no term asks for the part."""

    crop: Tensor | None  # (3, S, S) uint8
    sentence: Tensor | None  # (T,)
    # (N,) bool, those the box touches; None also where too little of it is in the view.
    patches: Tensor | None
    span: tuple[int, int] | None  # the sentence's tokens in the caption; None also beyond the context


class Sample(NamedTuple):
    """One picture in one epoch."""

    whole: Tensor  # (3, S, S) uint8
    caption: Tensor  # (T,)
    pairs: list[LocalPair]  # none where it has no usable pair or no term asks for one
    short: Tensor | None  # (T,), a part of the caption; None where no term asks for it


class Fault(NamedTuple):
    """A sample that could not be made; a value, so that it can be sent between processes."""

    message: str


class Needs(NamedTuple):
    """Which parts the terms with a weight ask for."""

    crops: bool
    sentences: bool
    short: bool
    attention: float = 0.0  # temperature of a sentence's attention over the patches; 0: not needed
    tokens: bool = False  # every patch and word

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> "Needs":
        def any_of(*terms: str) -> bool:
            return any(weights.get(term, 0) > 0 for term in terms)

        return cls(
            crops=any_of("local", "tsl_image"),
            sentences=any_of("local", "tsl_text", "sentence_patches"),
            short=any_of("short_caption"),
            attention=weights["attention_temperature"] if any_of("sentence_patches") else 0.0,
            tokens=any_of("late_interaction"),
        )


@dataclass(frozen=True)
class Pair:
    """A mined pair of a picture: the sentence captions[caption][start:end] and its box (image frame)."""

    caption: int
    sentence: int
    start: int
    end: int
    box: BoxTuple
    similarity: float


def read_pairs(folder: Path, choice: PairChoice) -> dict[str, list[Pair]]:
    """The pairs that training may use, by picture id; of each caption the best first.

    Of equal ones the first sentence's comes first.

    Raises UserError where `folder` holds no mined pairs at all.
    """
    shards = sorted(folder.glob("shard-*.parquet"))
    if not shards:
        raise UserError(f"{folder}: no mined pairs; `dvc repro pairs` writes them")
    found: dict[str, list[Pair]] = defaultdict(list)
    for shard in shards:
        for row in manifest.read_table(shard, PAIRS, "pairs").to_pylist():
            if not row["dropped"] and row["similarity"] >= choice.min_similarity:
                box = tuple(row[side] for side in SIDES)
                found[row["id"]].append(
                    Pair(row["caption"], row["sentence"], row["start"], row["end"], box, row["similarity"])
                )
    limit = choice.per_step if choice.pick == "best" else choice.top
    return {name: _best_of_each_caption(pairs, limit) for name, pairs in found.items()}


def _best_of_each_caption(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    ordered = sorted(pairs, key=lambda pair: (pair.caption, -pair.similarity, pair.sentence))
    return [pair for _, own in groupby(ordered, lambda pair: pair.caption) for pair in list(own)[:limit]]


class Examples(Dataset):
    """The training pictures, texts tokenised once. `pairs` None: a stage without local terms."""

    def __init__(
        self,
        rows: Sequence[Row],
        pairs: Mapping[str, Sequence[Pair]] | None,
        spec: Spec,
        needs: Needs,
        seed: int,
        max_megapixels: float,
        min_visible: float,
        packed: Pictures | None = None,
        per_step: int = 1,
        short_share: float = 0.0,
        short: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """per_step: pairs of a picture in one step at most. short_share: of captions that are shortened.

        short: own short captions, by picture id; the others' are parts of the caption.
        """
        self._given = short or {}
        self.rows = rows
        self._packed = packed
        self._spec = spec
        self._needs = needs
        self._seed = seed
        self._max_megapixels = max_megapixels
        self._min_visible = min_visible
        self.per_step = per_step
        self._short_share = short_share
        self._view = clip.preprocess(spec).view
        self._pairs = [list(pairs.get(row.id, [])) if pairs else [] for row in rows]
        self._texts = [self._tokens(row, own) for row, own in zip(rows, self._pairs, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Sample | Fault:
        """The sample of `key`; a Fault names the picture that cannot be read."""
        row, texts = self.rows[key.index], self._texts[key.index]
        # All captions of a picture are used, whichever of them have pairs.
        caption = (key.index + key.epoch) % len(row.captions)
        numbers = self._choose(key, caption) if self._needs.crops or self._needs.sentences else []
        try:
            whole, crops = self._views(key.index, numbers if self._needs.crops else [])
        except UserError as error:
            return Fault(f"{row.id}: {error}")
        is_short = self._draw(key, "shorten").random() < self._short_share
        pairs = [
            LocalPair(
                crop=crops[place] if self._needs.crops else None,
                sentence=texts.sentences[number] if self._needs.sentences else None,
                patches=self._patches(row, self._pairs[key.index][number]) if self._needs.crops else None,
                span=texts.spans[number] if self._needs.sentences and not is_short else None,
            )
            for place, number in enumerate(numbers)
        ]
        short = self._short(key, texts, caption) if self._needs.short or is_short else None
        ids = short if is_short else texts.captions[caption]
        return Sample(whole, ids, pairs, short if self._needs.short else None)

    def counts(self) -> dict[str, int]:
        """Pictures, the pairs that may be drawn, and what the local terms must do without, by reason."""
        pairs = [(row, pair) for row, own in zip(self.rows, self._pairs, strict=True) for pair in own]
        views = [_view(row, self._spec).visible(pair.box) for row, pair in pairs]
        return {
            "pictures": len(self.rows),
            "captions": sum(len(row.captions) for row in self.rows),
            "pairs": len(pairs),
            "pictures_without_pair": sum(not own for own in self._pairs),
            "pairs_out_of_view": sum(share < self._min_visible for share in views),
            "pairs_beyond_context": sum(span is None for texts in self._texts for span in texts.spans),
        }

    def _choose(self, key: Key, caption: int) -> list[int]:
        """Numbers of the pairs that this step uses, of this caption."""
        own = [n for n, pair in enumerate(self._pairs[key.index]) if pair.caption == caption]
        return [own[place] for place in self._draw(key, "pair").permutation(len(own))[: self.per_step]]

    def _views(self, index: int, numbers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The whole view, and the crops of some pairs; UserError for a picture that cannot be used."""
        if self._packed:
            return self._packed.whole(index), [self._packed.crop(index, number) for number in numbers]
        row = self.rows[index]
        image = images.open_image(row.image, self._max_megapixels)
        if image.size != (row.width, row.height):
            raise UserError(
                f"{row.image} is {image.size[0]} x {image.size[1]} pixels, in the manifest {row.width} x "
                f"{row.height}; the picture was changed, `dvc repro` reads it anew"
            )
        own = [boxes.pixels(self._pairs[index][number].box, image.size) for number in numbers]
        return self._view(image), [self._view(image.crop(box)) for box in own]

    def _patches(self, row: Row, pair: Pair) -> Tensor | None:
        view = _view(row, self._spec)
        if view.visible(pair.box) < max(self._min_visible, np.finfo(float).tiny):
            return None
        return boxes.patch_mask(view.box_to_view(pair.box), self._spec.image_size, self._spec.patch_size)

    def _short(self, key: Key, texts: "Texts", caption: int) -> Tensor:
        """One of the picture's own short captions, or where it has none DeBias-CLIP's.

        That is some of the caption's sentences after the first, in their order.
        """
        draw = self._draw(key, "short")
        if texts.short:
            return texts.short[int(draw.integers(len(texts.short)))]
        parts = texts.parts[caption]
        rest = parts.spans[1:] or parts.spans
        count = int(draw.integers(1, len(rest) + 1))
        kept = [rest[number] for number in sorted(draw.permutation(len(rest))[:count])]
        tokens = torch.cat([parts.ids[start:end] for start, end in kept])[: self._spec.context_length - 2]
        return torch.cat([parts.ids[:1], tokens, parts.ids[-1:]])

    def _draw(self, key: Key, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key, *purpose.encode()])

    def _tokens(self, row: Row, pairs: Sequence[Pair]) -> "Texts":
        length = self._spec.context_length
        captions, spans = [], {}
        for number, caption in enumerate(row.captions):
            own = [pair for pair in pairs if pair.caption == number]
            sentences = [text.Sentence(pair.start, pair.end, caption[pair.start : pair.end]) for pair in own]
            tokens = text.tokenize(caption, sentences, length)
            captions.append(tokens.ids)
            spans.update(zip(own, tokens.spans, strict=True))
        sentences = [row.captions[pair.caption][pair.start : pair.end] for pair in pairs]
        return Texts(
            captions=captions,
            sentences=[text.tokenize(sentence, [], length).ids for sentence in sentences],
            spans=[spans[pair] for pair in pairs],
            parts=[_parts(one) for one in row.captions] if self._needs.short or self._short_share else [],
            short=[text.tokenize(one, [], length).ids for one in self._given.get(row.id, ())],
        )


class Parts(NamedTuple):
    """A caption that no context cuts, since a short caption takes any sentence: ids, and each one's span."""

    ids: Tensor
    spans: list[tuple[int, int]]


class Texts(NamedTuple):
    """Tokenised texts of one picture: by caption, and by pair."""

    captions: list[Tensor]
    sentences: list[Tensor]
    spans: list[tuple[int, int] | None]
    parts: list[Parts]
    short: list[Tensor]


def _parts(caption: str) -> Parts:
    tokens = text.tokenize(caption, text.split_sentences(caption), None)
    whole = (1, len(tokens.ids) - 1)
    return Parts(tokens.ids, [span for span in tokens.spans if span] or [whole])


def _view(row: Row, spec: Spec) -> View:
    return View((row.width, row.height), spec.image_size, spec.view)


def check_pairs(rows: Iterable[Row], pairs: Mapping[str, Sequence[Pair]], folder: Path) -> None:
    """Refuse pairs that were mined from other data: unknown pictures, captions or offsets."""
    known = {row.id: row for row in rows}
    for name, own in pairs.items():
        row = known.get(name)
        if row is None:
            raise UserError(f"{folder}: {name!r} is no training picture; `dvc repro pairs` mines anew")
        for pair in own:
            captions = row.captions
            if pair.caption >= len(captions) or pair.end > len(captions[pair.caption]):
                raise UserError(f"{folder}: {name!r} has other captions now; `dvc repro pairs` mines anew")


def are_whole_captions(rows: Iterable[Row], pairs: Mapping[str, Sequence[Pair]]) -> bool:
    """Whether every pair's sentence is all of its caption."""
    captions = {row.id: row.captions for row in rows}
    return all(
        captions[name][pair.caption][: pair.start].strip() == ""
        and captions[name][pair.caption][pair.end :].strip() == ""
        for name, own in pairs.items()
        for pair in own
    )
