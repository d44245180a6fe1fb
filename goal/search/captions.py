"""The captions of the project's data set: the ones nearest to a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from goal import devices, layout
from goal.datasets import manifest
from goal.evaluation import embed

if TYPE_CHECKING:
    from goal.config import Params


class Caption(NamedTuple):
    """A caption and its cosine with the picture that was asked for."""

    text: str
    score: float


class Captions:
    """All captions of a data set, embedded by one model (kept on disk, as those of an evaluation)."""

    def __init__(self, params: "Params", model: Path) -> None:
        files = [layout.manifest(params.data.name, split) for split in manifest.SPLITS]
        rows = [row for file in files if file.exists() for row in manifest.read(file)]
        self.texts = sorted({caption for row in rows for caption in row.captions})
        if self.texts:
            device = devices.resolve(params.train.device, "train.device").type
            settings = embed.Settings(device, params.evaluate.batch_size, params.data.max_megapixels)
            (found,) = embed.embed([model], [], self.texts, settings)
            self._vectors = F.normalize(found.of_texts(self.texts), dim=1)

    def nearest(self, picture: Float[Tensor, "1 D"], count: int) -> list[Caption]:
        """The captions nearest to a picture's L2-normalised vector, nearest first."""
        if not self.texts:
            return []
        scores, places = (picture.float().cpu() @ self._vectors.T)[0].topk(min(count, len(self.texts)))
        return [
            Caption(self.texts[place], score)
            for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        ]
