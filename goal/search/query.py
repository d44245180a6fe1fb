"""Queries to an index: a text of any length, or a picture, to the nearest pictures."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goal import clip, text, weights
from goal.cleaning import clean
from goal.errors import UserError
from goal.model import embedding
from goal.runtime import devices
from goal.search import ann, store
from goal.text.sentences import Sentence

if TYPE_CHECKING:
    from goal.config import Params

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Hit:
    """A picture that was found: its file (which may be deleted since) and its cosine with the query."""

    path: bytes
    score: float


@dataclass(frozen=True)
class Reading:
    """What a model reads of a text: `read` of its `tokens`, those of `head`; `rest` is beyond its context."""

    tokens: int
    read: int
    head: str
    rest: str


class Search:
    """An index with its model, both loaded."""

    def __init__(self, params: "Params", place: Path, model: Path, name: str) -> None:
        """The index at `place` and the model that the user calls `name`; UserError where they do not fit."""
        self.index = store.opened(place)
        store.check_model(place, self.index.card, name, weights.digest(model))
        if not len(self.index):
            raise UserError(f"{place}: holds no picture; `goal index` says why")
        device = devices.resolve(params.train.device, "train.device")
        self.network = weights.load(model).to(device).eval()
        self._nearest = ann.load(self.index)

    def by_text(self, words: str, count: int) -> list[Hit]:
        """The pictures nearest to a text, of which the model reads what its context holds."""
        if not words.strip():
            raise UserError("the text is empty; describe a picture")
        return self.nearest(self.of_text(words), count)

    def by_picture(self, image: Image.Image, count: int) -> list[Hit]:
        """The pictures nearest to one (RGB, image frame)."""
        return self.nearest(self.of_picture(image), count)

    def of_text(self, words: str) -> Float[Tensor, "1 D"]:
        """The L2-normalised vector, on the host, of what the model reads of a text."""
        found, _ = embedding.of_texts(self.network, [words], 1)
        return F.normalize(found, dim=1)

    def of_picture(self, image: Image.Image) -> Float[Tensor, "1 D"]:
        """The L2-normalised vector, on the host, of a picture (RGB, image frame)."""
        view = clip.preprocess(self.network.spec).view(image)
        return F.normalize(embedding.of_views(self.network, [view]), dim=1)

    def reading(self, words: str) -> Reading:
        """How much of a text the model reads."""
        return reading(words, self.network.spec.context_length)

    def nearest(self, query: Float[Tensor, "1 D"], count: int) -> list[Hit]:
        """The pictures nearest to a unit vector of this model."""
        scores, ids = (found[0].tolist() for found in self._nearest(query.numpy(), count))
        paths = self.index.paths(ids)
        return [
            Hit(os.path.join(self.index.root, paths[one]), score)
            for one, score in zip(ids, scores, strict=True)
            if one in paths
        ]


def reading(words: str, context_length: int) -> Reading:
    """How much of a text, once cleaned, a context holds; a word that is cut counts as read."""
    words = clean(words)
    found = [Sentence(one.start(), one.end(), one.group()) for one in _WORD.finditer(words)]
    cut = text.tokenize(words, found, context_length)
    end = max((word.end for word, span in zip(found, cut.spans, strict=True) if span), default=0)
    return Reading(len(text.tokenize(words, [], None).ids), len(cut.ids), words[:end], words[end:])
