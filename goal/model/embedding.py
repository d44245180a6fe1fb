"""Embeddings of many pictures and texts by one network, on the device where it is.

Letters: B pictures of a batch, T texts, S side of the view in pixels, D joint width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from goal import text
from goal.datasets.prefetch import batches
from goal.model.network import GoalClip


@torch.inference_mode()
def of_views(model: GoalClip, views: Sequence[UInt8[Tensor, "3 S S"]]) -> Float[Tensor, "B D"]:
    """Embeddings (fp32, not normalised, on the host) of a batch of views, `clip.Preprocess.view` of pictures.

    They are sent to the device as bytes and normalised there: floats would be four times as much.
    """
    return model.encode_images(torch.stack(list(views)).to(model.logit_scale.device)).float().cpu()


@torch.inference_mode()
def of_texts(
    model: GoalClip, texts: Sequence[str], batch_size: int, bar: bool = False
) -> tuple[Float[Tensor, "T D"], Int[Tensor, " T"]]:
    """Embeddings (fp32, not normalised, on the host) of texts, and their tokens before the context cuts them.

    Texts of similar length share a batch, padded to its longest. bar: whether to show progress.
    """
    context, device = model.spec.context_length, model.logit_scale.device
    ids = [text.tokenize(one, [], None).ids for one in tqdm(texts, "tokens", unit=" texts", disable=not bar)]
    counts = torch.tensor([len(one) for one in ids], dtype=torch.long)
    order = counts.argsort(descending=True, stable=True).tolist()
    embedded = torch.empty(len(texts), model.spec.embed_dim)
    for rows in tqdm(list(batches(order, batch_size)), "texts", unit=" batches", disable=not bar):
        padded = text.pad([_cut(ids[row], context) for row in rows])
        embedded[rows] = model.encode_texts(padded.to(device)).float().cpu()
    return embedded, counts


def _cut(ids: Tensor, context: int) -> Tensor:
    """As text.tokenize cuts: the EOS stays."""
    return ids if len(ids) <= context else torch.cat([ids[: context - 1], ids[-1:]])
