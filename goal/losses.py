"""The terms of the objective as functions of embeddings (GOAL, arXiv 2503.17782, and later proposals).

Letters: B pairs of this process, G pairs of all processes together (G = B when there is one), D joint width.
Every process returns its share of a term: the mean of the shares over processes is the term of the joined
batch, and the mean of their gradients, which is what DistributedDataParallel computes, is its gradient.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

TERMS = ("global", "local", "tsl_image", "tsl_text", "short_caption")


class Gathered(NamedTuple):
    """Both sides of a contrastive term from all processes; this process's rows begin at `first`."""

    image: Float[Tensor, "G D"]
    text: Float[Tensor, "G D"]
    valid: Bool[Tensor, " G"] | None
    first: int


class Embeddings(NamedTuple):
    """What a batch gives the objective: (B, D), not normalised; None where no term with a weight asks.

    `region` and `sentence` are the local pairs, `patches` and `tokens` the pooled parts of the image and
    the caption, `short` a part of the caption. `has_pair`, `in_view`, `in_context` (B,) say which rows of the
    local terms, of TSL's image side and of TSL's text side count; other rows may hold anything.
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
    everyone: Gathered | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between image i and text i (paper, section 3.3), the embeddings L2-normalised here.

    Pairs that are not `valid` are neither rows nor negatives; without any valid pair the term is 0 with a
    gradient of 0. `hard_negative` is HN-CLIP's gamma: gamma * cos(text i, text j), without gradient,
    is added to the logits of negatives. With `everyone` the rows of this process meet the columns of all.
    """
    everyone = everyone or Gathered(image, text, valid, 0)
    image, text = _unit(image, valid), _unit(text, valid)
    images, texts = _unit(everyone.image, everyone.valid), _unit(everyone.text, everyone.valid)
    target = everyone.first + torch.arange(len(image), device=image.device)
    to_text = scale * image @ texts.T
    to_image = scale * text @ images.T
    if hard_negative:
        likeness = (text @ texts.T).detach()
        likeness = likeness.scatter(1, target[:, None], 0.0)
        to_text = to_text + hard_negative * likeness
        to_image = to_image + hard_negative * likeness
    if valid is None or everyone.valid is None:
        # Filled on the device: a value from the host would be waited for.
        count = torch.full((), len(images), device=image.device)
    else:
        # Finite, since a row of only -inf has no softmax and the gradient of a skipped row would be NaN.
        nothing = torch.finfo(to_text.dtype).min
        to_text = to_text.masked_fill(~everyone.valid, nothing)
        to_image = to_image.masked_fill(~everyone.valid, nothing)
        target = target.masked_fill(~valid, -100)
        count = everyone.valid.sum()
    total = sum(
        F.cross_entropy(logits, target, ignore_index=-100, reduction="sum") for logits in (to_text, to_image)
    )
    return _share(total / 2, count, len(image), len(images))


def token_similarity(
    pooled: Float[Tensor, "B D"],
    target: Float[Tensor, "B D"],
    valid: Bool[Tensor, " B"] | None = None,
    everyone: Bool[Tensor, " G"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the valid rows of (1 - cos(pooled, target))^2 (paper, section 3.2); gradients flow into both.

    0 with a gradient of 0 when no row is valid. `everyone` is `valid` of all processes.
    """
    if valid is None:
        valid = torch.ones(len(pooled), dtype=torch.bool, device=pooled.device)
    everyone = valid if everyone is None else everyone
    cosine = (_unit(pooled, valid) * _unit(target, valid)).sum(1)
    squares = torch.where(valid, (1 - cosine) ** 2, 0.0)
    return _share(squares.sum(), everyone.sum(), len(valid), len(everyone))


def terms(
    own: Embeddings,
    scale: Float[Tensor, ""],
    weights: Mapping[str, float],
    everyone: Embeddings | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """Each term of the objective that has a weight, unweighted, by name.

    `weights` holds TERMS and `hard_negative` (gamma of the global term); a missing name is a weight of 0.
    """
    everyone = everyone or own
    result = {}
    if weights.get("global"):
        columns = Gathered(everyone.image, everyone.text, None, first)
        gamma = weights.get("hard_negative", 0.0)
        result["global"] = contrastive(own.image, own.text, scale, None, gamma, columns)
    if weights.get("local"):
        columns = Gathered(everyone.region, everyone.sentence, everyone.has_pair, first)
        result["local"] = contrastive(own.region, own.sentence, scale, own.has_pair, 0.0, columns)
    if weights.get("tsl_image"):
        result["tsl_image"] = token_similarity(own.patches, own.region, own.in_view, everyone.in_view)
    if weights.get("tsl_text"):
        result["tsl_text"] = token_similarity(own.tokens, own.sentence, own.in_context, everyone.in_context)
    if weights.get("short_caption"):
        columns = Gathered(everyone.image, everyone.short, None, first)
        result["short_caption"] = contrastive(own.image, own.short, scale, None, 0.0, columns)
    return result


def weighted(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The objective: the sum of the terms, each times its weight."""
    return sum(weights[name] * value for name, value in values.items())


def _unit(rows: Tensor, valid: Tensor | None) -> Tensor:
    # Replaced before the division: a NaN in a row that does not count must reach neither value nor gradient.
    if valid is not None:
        rows = torch.where(valid[:, None], rows, 1.0)
    return F.normalize(rows, dim=1)


def _share(total: Tensor, count: Tensor, own: int, everyone: int) -> Tensor:
    # The mean over processes of what this returns is the sum of all totals, divided by the count of all.
    return total * (everyone / own) / count.clamp(min=1)
