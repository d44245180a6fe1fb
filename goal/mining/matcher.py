"""A CLIP that says which crops and which sentences are near to each other.

Letters: D joint width.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from goal import clip, config, text, weights
from goal.mining import reading
from goal.model import network
from goal.runtime import devices, files, pool


class Encoded(NamedTuple):
    """A sentence's unit vector (D,), and whether the matcher's context cut it."""

    vector: np.ndarray
    truncated: bool


class Matcher:
    """The network and how it is fed; float32 throughout."""

    def __init__(self, model: network.GoalClip, params: config.Pairs) -> None:
        self.device = devices.resolve(params.device, "pairs.device", pool.number())
        self.model = model.to(self.device).eval()
        self.prepare = clip.preprocess(model.spec)
        self.batch_size = params.batch_size
        self.threads = params.threads

    def sentences(self, texts: Iterable[str]) -> dict[str, Encoded]:
        """Encode sentences; those of like length share a batch, so that little is padding."""
        context = self.model.spec.context_length
        ids = {one: text.tokenize(one, [], None).ids for one in texts}
        encoded = {}
        for batch in reading.batches(sorted(ids, key=lambda one: (len(ids[one]), one)), self.batch_size):
            fitting = [
                ids[one] if len(ids[one]) <= context else text.tokenize(one, [], context).ids for one in batch
            ]
            with torch.inference_mode():
                padded = text.pad(fitting).to(self.device)
                vectors = self.model.encode_texts(padded, normalize=True).cpu().numpy()
            for one, vector in zip(batch, vectors, strict=True):
                encoded[one] = Encoded(vector, len(ids[one]) > context)
        return encoded

    def crops(self, views: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, np.ndarray]]:
        """(id, view) to (id, unit vector (D,)), in batches that cross pictures."""
        for batch in reading.batches(views, self.batch_size):
            pixels = torch.stack([view for _, view in batch]).to(self.device)
            with torch.inference_mode():
                vectors = self.model.encode_images(pixels, normalize=True).cpu().numpy()
            yield from zip((name for name, _ in batch), vectors, strict=True)


@lru_cache(maxsize=1)
def load(path: str, digest: str, section: str) -> Matcher:
    """The matcher of a weights file of this digest, loaded once a process, and anew where it is another.

    section: params' `pairs` as JSON.
    """
    params = config.Pairs.model_validate_json(section)
    files.expect(Path(path), digest)
    # Not the machine's cores: with another number of threads sums come out otherwise in the last bits.
    torch.set_num_threads(params.threads)
    torch.backends.cudnn.allow_tf32 = False
    return Matcher(weights.load(path), params)
