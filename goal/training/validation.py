"""Recall on the validation split while a training goes on."""

from collections.abc import Callable, Iterator, Sequence
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
        # Those of an earlier `read`, where several networks see the same pictures.
        self.views: list[list[Tensor]] | None = None
        self._prepare = clip.preprocess(spec)
        self._max_megapixels = max_megapixels
        self._batch_size = batch_size
        captions = [caption for row in rows for caption in row.captions]
        # Equal captions share an embedding: in another batch its last bits would differ and decide.
        self._texts = list(dict.fromkeys(captions))
        places = {caption: place for place, caption in enumerate(self._texts)}
        self._places = torch.tensor([places[caption] for caption in captions])
        self._owner = torch.tensor([number for number, row in enumerate(rows) for _ in row.captions])

    def read(self) -> Iterator[list[Tensor]]:
        """The pictures' views in batches, decoded ahead; raises UserError for one that cannot be read."""
        return prefetch.batches_ahead(self._view, self._files, self._batch_size)

    def measure(
        self, model: GoalClip, autocast: Callable[[], AbstractContextManager[None]], step: int
    ) -> dict[str, Any]:
        """Recall@KS both ways in percent, and `recall`, by which models are compared: the mean R@1.

        Raises UserError for a picture that cannot be read.
        """
        device = model.logit_scale.device
        model.eval()
        with torch.inference_mode(), autocast():
            views = self.read() if self.views is None else self.views
            pictures = torch.cat([embedding.of_views(model, batch) for batch in views])
            texts, _ = embedding.of_texts(model, self._texts, self._batch_size)
        model.train()
        given = pictures, texts[self._places], self._owner
        recalls = recall_at_k(*(tensor.to(device) for tensor in given), KS)
        named = {way: {f"r{k}": value for k, value in values.items()} for way, values in recalls.items()}
        mean = sum(values[1] for values in recalls.values()) / len(recalls)
        return {"step": step, "recall": mean, **named}

    def _view(self, file: str) -> Tensor:
        return self._prepare.view(images.open_image(file, self._max_megapixels))
