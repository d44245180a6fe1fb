"""The terms of the objective as functions of embeddings (GOAL, arXiv 2503.17782, and later proposals).

Letters: B pairs of this rank, G pairs of all ranks together (G = B on one rank), D joint width.
Every rank returns its share of a term. The mean of the shares over ranks is the term of the whole batch, and
the mean of their gradients, which DistributedDataParallel computes, is the gradient of the whole batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

TERMS = ("global", "local", "tsl_image", "tsl_text", "short_caption")


class Gathered(NamedTuple):
    """Both sides of a contrastive term, gathered across ranks; this rank's rows start at `first`."""

    image: Float[Tensor, "G D"]
    text: Float[Tensor, "G D"]
    valid: Bool[Tensor, " G"] | None
    first: int


class Embeddings(NamedTuple):
    """Embeddings of a batch, each (B, D) and not normalised; None where no term with a weight needs it.

    `image` and `text` are the whole images and captions, `region` and `sentence` the local pairs, `patches`
    and `tokens` the pooled patches of the region and tokens of the sentence, `short` a shortened caption.
    The masks `has_pair`, `in_view` and `in_context` (B,) say which rows count in the local term, in TSL's
    image side and in TSL's text side; the other rows may hold anything.
    """

    image: Tensor
    text: Tensor
    region: Tensor | None = None
    sentence: Tensor | None = None
    patches: Tensor | None = None
    tokens: Tensor | None = None
    short: Tensor | None = None
    has_pair: Tensor | None = None
    in_view: Tensor | None = None
    in_context: Tensor | None = None


def contrastive(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    scale: Float[Tensor, ""] | float,
    valid: Bool[Tensor, " B"] | None = None,
    hard_negative: float = 0.0,
    gathered: Gathered | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between image i and text i (paper, section 3.3); normalises the embeddings itself.

    Pairs that are not `valid` are neither queries nor negatives; without any valid pair the term is 0 with a
    gradient of 0. `hard_negative` is gamma of HN-CLIP (arXiv 2608.18521, eq. 2), a margin in cosine: the
    logits of negatives are scale * (cosine + gamma * cos(text i, text j)), the latter cosine detached.
    `gathered`: compare this rank's rows with those of all ranks.
    """
    gathered = gathered or Gathered(image, text, valid, 0)
    image, text = _unit(image, valid), _unit(text, valid)
    images, texts = _unit(gathered.image, gathered.valid), _unit(gathered.text, gathered.valid)
    target = gathered.first + torch.arange(len(image), device=image.device)
    to_text = scale * image @ texts.T
    to_image = scale * text @ images.T
    if hard_negative:
        similarity = (text @ texts.T).detach()
        margin = scale * hard_negative * similarity.scatter(1, target[:, None], 0.0)
        to_text = to_text + margin
        to_image = to_image + margin
    if valid is None or gathered.valid is None:
        # torch.full, not torch.tensor: avoids a host-device sync.
        count = torch.full((), len(images), device=image.device)
    else:
        # Not -inf: a row without any valid column would have a NaN softmax, and a NaN gradient.
        lowest = torch.finfo(to_text.dtype).min
        to_text = to_text.masked_fill(~gathered.valid, lowest)
        to_image = to_image.masked_fill(~gathered.valid, lowest)
        target = target.masked_fill(~valid, -100)
        count = gathered.valid.sum()
    total = sum(
        F.cross_entropy(logits, target, ignore_index=-100, reduction="sum") for logits in (to_text, to_image)
    )
    return _share(total / 2, count, len(image), len(images))


def token_similarity(
    pooled: Float[Tensor, "B D"],
    target: Float[Tensor, "B D"],
    valid: Bool[Tensor, " B"] | None = None,
    gathered: Bool[Tensor, " G"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the valid rows of (1 - cos(pooled, target))^2 (paper, section 3.2); gradients flow into both.

    0 with a gradient of 0 when no row is valid. `gathered` is `valid` of all ranks.
    """
    if valid is None:
        valid = torch.ones(len(pooled), dtype=torch.bool, device=pooled.device)
    gathered = valid if gathered is None else gathered
    cosine = (_unit(pooled, valid) * _unit(target, valid)).sum(1)
    squares = torch.where(valid, (1 - cosine) ** 2, 0.0)
    return _share(squares.sum(), gathered.sum(), len(valid), len(gathered))


def terms(
    own: Embeddings,
    scale: Float[Tensor, ""],
    loss_weights: Mapping[str, float],
    gathered: Embeddings | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """The terms of the objective whose weight is not 0, by name and not yet weighted.

    `loss_weights`: by name, TERMS and `hard_negative` (gamma of the global term); a missing one counts as 0.
    `gathered` holds the embeddings of all ranks, this rank's from row `first`; None: there is only one.
    """
    gathered = gathered or own
    result = {}
    if loss_weights.get("global"):
        both = Gathered(gathered.image, gathered.text, None, first)
        gamma = loss_weights.get("hard_negative", 0.0)
        result["global"] = contrastive(own.image, own.text, scale, None, gamma, both)
    if loss_weights.get("local"):
        both = Gathered(gathered.region, gathered.sentence, gathered.has_pair, first)
        result["local"] = contrastive(own.region, own.sentence, scale, own.has_pair, 0.0, both)
    if loss_weights.get("tsl_image"):
        result["tsl_image"] = token_similarity(own.patches, own.region, own.in_view, gathered.in_view)
    if loss_weights.get("tsl_text"):
        result["tsl_text"] = token_similarity(own.tokens, own.sentence, own.in_context, gathered.in_context)
    if loss_weights.get("short_caption"):
        both = Gathered(gathered.image, gathered.short, None, first)
        result["short_caption"] = contrastive(own.image, own.short, scale, None, 0.0, both)
    return result


def weighted(values: Mapping[str, Tensor], loss_weights: Mapping[str, float]) -> Tensor:
    """The objective: the sum of the terms, each times its weight."""
    return sum(loss_weights[name] * value for name, value in values.items())


def _unit(rows: Tensor, valid: Tensor | None) -> Tensor:
    # Masked rows become 1 before the division, so that NaN in them reaches neither the loss nor a gradient.
    if valid is not None:
        rows = torch.where(valid[:, None], rows, 1.0)
    return F.normalize(rows, dim=1)


def _share(total: Tensor, count: Tensor, own_rows: int, all_rows: int) -> Tensor:
    """This rank's share of a mean over the `count` valid rows of all ranks; `total` is its own rows' sum."""
    return total * (all_rows / own_rows) / count.clamp(min=1)
