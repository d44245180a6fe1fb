"""Recall on the validation split while a training goes on.

Letters: N pictures, M captions, D joint width, S side of the view in pixels, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from goal import clip, text
from goal.datasets import images
from goal.datasets.manifest import Row
from goal.metrics import recall_at_k
from goal.model.network import GoalClip, Spec

KS = (1, 5, 10)
READERS = 4  # threads


class Validation:
    """The validation pictures with all their captions, tokenised once."""

    def __init__(self, rows: Sequence[Row], spec: Spec, max_megapixels: float, batch_size: int) -> None:
        self._files = [row.image for row in rows]
        self._prepare = clip.preprocess(spec)
        self._max_megapixels = max_megapixels
        self._batch_size = batch_size
        captions = [caption for row in rows for caption in row.captions]
        # Equal captions share an embedding: in another batch its last bits would differ and decide.
        places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
        self._ids = [text.tokenize(caption, [], spec.context_length).ids for caption in places]
        self._places = torch.tensor([places[caption] for caption in captions])
        self._owner = torch.tensor([number for number, row in enumerate(rows) for _ in row.captions])

    @torch.inference_mode()
    def measure(
        self, model: GoalClip, autocast: Callable[[], AbstractContextManager[None]], step: int
    ) -> dict[str, Any]:
        """Recall@KS both ways in percent, and `recall`, by which models are compared: the mean R@1.

        Raises UserError for a picture that cannot be read.
        """
        device = model.logit_scale.device
        model.eval()
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(self._ids)), key=lambda row: len(self._ids[row]))
        with autocast():
            pictures = [model.encode_images(views.to(device)) for views in self._views()]
            texts = [model.encode_texts(ids.to(device)) for ids in self._texts(order)]
        model.train()
        text_rows = torch.cat(texts)[torch.tensor(order, device=device).argsort()][self._places.to(device)]
        recalls = recall_at_k(torch.cat(pictures).float(), text_rows.float(), self._owner.to(device), KS)
        named = {way: {f"r{k}": value for k, value in values.items()} for way, values in recalls.items()}
        mean = sum(values[1] for values in recalls.values()) / len(recalls)
        return {"step": step, "recall": mean, **named}

    def _views(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(READERS) as pool:
            for files in _parts(self._files, self._batch_size):
                yield torch.stack(list(pool.map(self._view, files)))

    def _view(self, file: str) -> Tensor:
        return self._prepare(images.open_image(file, self._max_megapixels))

    def _texts(self, order: Sequence[int]) -> Iterator[Tensor]:
        for rows in _parts(order, self._batch_size):
            yield text.pad([self._ids[row] for row in rows])


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
