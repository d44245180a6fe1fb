"""Recall on the validation split while a training goes on."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from goal import clip
from goal.datasets import images, prefetch
from goal.datasets.manifest import Row
from goal.metrics import recall_at_k
from goal.model import embedding
from goal.model.network import GoalClip, Spec

KS = (1, 5, 10)


class Validation:
    """The validation pictures with all their captions."""

    def __init__(self, rows: Sequence[Row], spec: Spec, max_megapixels: float, batch_size: int) -> None:
        self._files = [row.image for row in rows]
        self._prepare = clip.preprocess(spec)
        self._max_megapixels = max_megapixels
        self._batch_size = batch_size
        captions = [caption for row in rows for caption in row.captions]
        # Equal captions share an embedding: in another batch its last bits would differ and decide.
        self._texts = list(dict.fromkeys(captions))
        places = {caption: place for place, caption in enumerate(self._texts)}
        self._places = torch.tensor([places[caption] for caption in captions])
        self._owner = torch.tensor([number for number, row in enumerate(rows) for _ in row.captions])

    def views(self) -> dict[str, Tensor]:
        """Each picture's view by its file, for several networks; UserError for one that cannot be read."""
        batches = prefetch.batches_ahead(self._view, self._files, self._batch_size)
        return dict(zip(self._files, itertools.chain.from_iterable(batches), strict=True))

    def measure(
        self,
        model: GoalClip,
        autocast: Callable[[], AbstractContextManager[None]],
        step: int,
        views: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Recall@KS both ways in percent, and `recall`, by which models are compared: the mean R@1.

        views: those of `views`, else the pictures are read. Raises UserError for one that cannot be read.
        """
        device = model.logit_scale.device
        model.eval()
        with torch.inference_mode(), autocast():
            if views is None:
                batches = prefetch.batches_ahead(self._view, self._files, self._batch_size)
            else:
                batches = prefetch.batches([views[file] for file in self._files], self._batch_size)
            pictures = torch.cat([embedding.of_views(model, batch) for batch in batches])
            texts, _ = embedding.of_texts(model, self._texts, self._batch_size)
        model.train()
        given = pictures, texts[self._places], self._owner
        recalls = recall_at_k(*(tensor.to(device) for tensor in given), KS)
        named = {way: {f"r{k}": value for k, value in values.items()} for way, values in recalls.items()}
        mean = sum(values[1] for values in recalls.values()) / len(recalls)
        return {"step": step, "recall": mean, **named}

    def _view(self, file: str) -> Tensor:
        return self._prepare.view(images.open_image(file, self._max_megapixels))
