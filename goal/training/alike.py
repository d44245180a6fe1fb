"""Batches of alike captions: negatives that only details tell apart (after NegCLIP, arXiv 2210.01936).

Random batches of a large set hold few captions that are hard to tell apart, so the contrastive loss is nearly
0 although the model cannot tell most details apart. Letters: N pictures, D joint width.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from goal.model import embedding
from goal.model.network import GoalClip
from goal.runtime import tensorfiles

# Neighbours are searched within blocks of this many pictures: the matrix of cosines takes 256 MB at most.
BLOCK = 8192
BATCH = 128
FILE = "captions.safetensors"


def embeddings(model: GoalClip, captions: list[str], file: Path) -> Float[Tensor, "N D"]:
    """Unit embeddings of the captions by the network before training, read from `file` if they lie there.

    Written there, since a training that resumes must find the same order whatever its weights are by then.
    """
    if not file.exists():
        model.eval()
        found, _ = embedding.of_texts(model, captions, BATCH, bar=True)
        model.train()
        tensorfiles.write(file, {"captions": F.normalize(found, dim=1)}, {})
    return tensorfiles.read(file)[0]["captions"]


def grouped(
    order: Int[np.ndarray, " N"], captions: Float[Tensor, "N D"], neighbours: int, rng: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """The pictures of `order` in another order: each first of a group is followed by its `neighbours`.

    The first picture that is left takes those that are left whose captions have the highest cosine with its
    own; the groups come in a random order.
    """
    groups = []
    for start in range(0, len(order), BLOCK):
        block = torch.from_numpy(order[start : start + BLOCK])
        own = captions[block]
        cosine, left = own @ own.T, torch.ones(len(block), dtype=torch.bool)
        for first in range(len(block)):
            if left[first]:
                left[first] = False
                count = min(neighbours, int(left.sum()))
                near = cosine[first].masked_fill(~left, -2.0).topk(count).indices
                left[near] = False
                groups.append(block[[first, *near.tolist()]].numpy())
    return np.concatenate([groups[place] for place in rng.permutation(len(groups))])
