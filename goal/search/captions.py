"""Search in the captions of the project's data set by picture."""

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from goal.config import paths
from goal.datasets import manifest
from goal.evaluation import embed
from goal.runtime import devices
from goal.search.query import Search

if TYPE_CHECKING:
    from goal.config import Params


class Caption(NamedTuple):
    """A caption and its cosine with the query picture."""

    text: str
    score: float


class Captions:
    """All captions of a data set, embedded by the model of a search at the first query, and kept on disk."""

    def __init__(self, params: "Params", search: Search) -> None:
        self._params, self._search = params, search
        files = [paths.manifest(params.data.name, split) for split in manifest.SPLITS]
        rows = [row for file in files if file.exists() for row in manifest.read(file)]
        self.texts = sorted({caption for row in rows for caption in row.captions})

    @cached_property
    def _vectors(self) -> Float[Tensor, "T D"]:
        params = self._params
        device = devices.resolve(params.train.device, "train.device").type
        settings = embed.Settings(device, params.evaluate.batch_size, params.data.max_megapixels)
        network, digest = self._search.network, self._search.index.card.digest
        (found,) = embed.embed_with([network], [digest], [], self.texts, settings)
        return F.normalize(found.of_texts(self.texts), dim=1)

    def nearest(self, picture: Float[Tensor, "1 D"], count: int) -> list[Caption]:
        """The captions nearest to a picture's L2-normalised vector, nearest first; there must be some."""
        scores, places = (picture @ self._vectors.T)[0].topk(min(count, len(self.texts)))
        return [
            Caption(self.texts[place], score)
            for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        ]
