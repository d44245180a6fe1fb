"""The CLIP by which crops and sentences are matched.

Letters: D joint width.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from goal import clip, config, weights
from goal.datasets import prefetch
from goal.model import embedding, network
from goal.runtime import devices, files, pool


class Encoded(NamedTuple):
    """A sentence's unit vector (D,), and whether the matcher's context cut it."""

    vector: np.ndarray
    truncated: bool


class Matcher:
    """The network and how it is fed; float32 throughout."""

    def __init__(self, model: network.GoalClip, params: config.Pairs) -> None:
        device = devices.resolve(params.device, "pairs.device", pool.number())
        self.model = model.to(device).eval()
        self.prepare = clip.preprocess(model.spec)
        self.batch_size = params.batch_size
        self.threads = params.threads

    def sentences(self, texts: Iterable[str]) -> dict[str, Encoded]:
        """Encode sentences."""
        # A set has another order in each process.
        ordered = sorted(texts)
        found, counts = embedding.of_texts(self.model, ordered, self.batch_size)
        vectors, truncated = F.normalize(found, dim=1).numpy(), counts > self.model.spec.context_length
        return dict(zip(ordered, map(Encoded, vectors, truncated.tolist()), strict=True))

    def crops(self, views: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, np.ndarray]]:
        """(id, view as bytes) to (id, unit vector (D,)), in batches that cross pictures."""
        for batch in prefetch.batches(views, self.batch_size):
            names, pixels = zip(*batch, strict=True)
            vectors = F.normalize(embedding.of_views(self.model, pixels), dim=1)
            yield from zip(names, vectors.numpy(), strict=True)


@lru_cache(maxsize=1)
def load(path: str, digest: str, section: str) -> Matcher:
    """The matcher of a weights file of this digest, loaded once per process, and again for another file.

    section: params' `pairs` as JSON.
    """
    params = config.Pairs.model_validate_json(section)
    files.expect(Path(path), digest)
    # A fixed number: with another number of threads, sums differ in the last bits.
    torch.set_num_threads(params.threads)
    return Matcher(weights.load(path), params)
