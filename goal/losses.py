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

TERMS = (
    "global", "local", "tsl_image", "tsl_text", "short_caption", "sentence_patches", "late_interaction",
)  # fmt: skip


class Gathered(NamedTuple):
    """Both sides of a contrastive term, gathered across ranks; this rank's rows start at `first`."""

    image: Float[Tensor, "G D"]
    text: Float[Tensor, "G D"]
    valid: Bool[Tensor, " G"] | None
    first: int


class Embeddings(NamedTuple):
    """Embeddings of a batch, not normalised; None where no term with a weight needs it. K: pairs per picture.

    `image` and `text` (B, D) are the whole images and captions, `short` (B, D) shortened captions. The local
    pairs are (B, K, D) or, where K is 1, (B, D): `region` and `sentence` are the crop and the sentence,
    `patches` and `tokens` the pooled patches of the region and tokens of the sentence in their context,
    `attended` the patches that the sentence attends to. `grid` (B, N, D) are all patches, `words` (B, T, D)
    all tokens of the caption, and `is_word` (B, T) says which of these are words.
    The masks `has_pair`, `in_view` and `in_context`, (B, K) or (B,), say which pairs count in the local terms
    and in TSL's image and text side; the other rows may hold anything.
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
    attended: Tensor | None = None
    grid: Tensor | None = None
    words: Tensor | None = None
    is_word: Tensor | None = None


def contrastive(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    scale: Float[Tensor, ""] | float,
    valid: Bool[Tensor, " B"] | None = None,
    hard_negative: float = 0.0,
    gathered: Gathered | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE between image i and text i (paper, section 3); normalises the embeddings itself.

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
    """Mean over the valid rows of (1 - cos(pooled, target))^2 (paper, section 3, TSL).

    Gradients flow into both sides. 0 with a gradient of 0 when no row is valid. `gathered` is `valid` of all
    ranks.
    """
    if valid is None:
        valid = torch.ones(len(pooled), dtype=torch.bool, device=pooled.device)
    gathered = valid if gathered is None else gathered
    cosine = (_unit(pooled, valid) * _unit(target, valid)).sum(1)
    squares = torch.where(valid, (1 - cosine) ** 2, 0.0)
    return _share(squares.sum(), gathered.sum(), len(valid), len(gathered))


def attend(
    sentences: Float[Tensor, "B K D"], patches: Float[Tensor, "B N D"], temperature: float
) -> Float[Tensor, "B K D"]:
    """What each sentence finds in its picture: the patches' mean, weighted by softmax(cosine / temperature).

    After MulCLIP, which needs no region for it. Raises ValueError for a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature of {temperature}: must be above 0")
    cosine = F.normalize(sentences, dim=-1) @ F.normalize(patches, dim=-1).transpose(1, 2)
    return (cosine / temperature).softmax(-1) @ patches


def late_interaction(
    patches: Float[Tensor, "B N D"],
    words: Float[Tensor, "B T D"],
    is_word: Bool[Tensor, "B T"],
    scale: Float[Tensor, ""] | float,
    gathered: tuple[Float[Tensor, "G N D"], Float[Tensor, "G T D"], Bool[Tensor, "G T"], int] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of token-wise similarities (FILIP, arXiv 2111.07783; a term of HN-CLIP).

    Image to text: the mean over patches of the highest cosine among the caption's words; text to image: the
    mean over words of the highest cosine among the patches. Every caption must have a word. `gathered`:
    patches, words and masks of all ranks, and the first row of this rank.
    """
    all_patches, all_words, all_is_word, first = gathered or (patches, words, is_word, 0)
    patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
    all_patches, all_words = F.normalize(all_patches, dim=-1), F.normalize(all_words, dim=-1)
    to_text, to_image = [], []
    # Per row: the cosines of all patches with all words would not fit the memory. `max` keeps indices only.
    for own_patches, own_words, own_is_word in zip(patches, words, is_word, strict=True):
        cosine = (own_patches @ all_words.transpose(1, 2)).masked_fill(~all_is_word[:, None], -2.0)
        to_text.append(cosine.max(dim=2).values.mean(1))
        best = (own_words @ all_patches.transpose(1, 2)).max(dim=2).values
        to_image.append((best * own_is_word).sum(1) / own_is_word.sum())
    target = first + torch.arange(len(patches), device=patches.device)
    total = sum(
        F.cross_entropy(scale * torch.stack(rows), target, reduction="sum") for rows in (to_text, to_image)
    )
    count = torch.full((), len(all_patches), device=patches.device)
    return _share(total / 2, count, len(patches), len(all_patches))


def terms(
    own: Embeddings,
    scale: Float[Tensor, ""],
    loss_weights: Mapping[str, float],
    gathered: Embeddings | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """The terms of the objective whose weight is not 0, by name and not yet weighted.

    `loss_weights`: by name, TERMS and the margins `hard_negative` (of the global term) and
    `local_hard_negative`; a missing one counts as 0. `gathered` holds the embeddings of all ranks, those of
    this rank from picture `first`; None: there is only one.
    """
    pairs_per_picture = 1 if own.has_pair is None else own.has_pair.numel() // len(own.image)
    first_pair = first * pairs_per_picture
    own, gathered = _by_pair(own), _by_pair(gathered or own)
    result = {}
    if loss_weights.get("global"):
        both = Gathered(gathered.image, gathered.text, None, first)
        gamma = loss_weights.get("hard_negative", 0.0)
        result["global"] = contrastive(own.image, own.text, scale, None, gamma, both)
    if loss_weights.get("local"):
        both = Gathered(gathered.region, gathered.sentence, gathered.has_pair, first_pair)
        gamma = loss_weights.get("local_hard_negative", 0.0)
        result["local"] = contrastive(own.region, own.sentence, scale, own.has_pair, gamma, both)
    if loss_weights.get("tsl_image"):
        result["tsl_image"] = token_similarity(own.patches, own.region, own.in_view, gathered.in_view)
    if loss_weights.get("tsl_text"):
        result["tsl_text"] = token_similarity(own.tokens, own.sentence, own.in_context, gathered.in_context)
    if loss_weights.get("short_caption"):
        both = Gathered(gathered.image, gathered.short, None, first)
        result["short_caption"] = contrastive(own.image, own.short, scale, None, 0.0, both)
    if loss_weights.get("sentence_patches"):
        both = Gathered(gathered.attended, gathered.sentence, gathered.has_pair, first_pair)
        result["sentence_patches"] = contrastive(own.attended, own.sentence, scale, own.has_pair, 0.0, both)
    if loss_weights.get("late_interaction"):
        all_tokens = (gathered.grid, gathered.words, gathered.is_word, first)
        result["late_interaction"] = late_interaction(own.grid, own.words, own.is_word, scale, all_tokens)
    return result


def weighted(values: Mapping[str, Tensor], loss_weights: Mapping[str, float]) -> Tensor:
    """The objective: the sum of the terms, each times its weight."""
    return sum(loss_weights[name] * value for name, value in values.items())


def _by_pair(batch: Embeddings) -> Embeddings:
    """The local fields by pair, (B K, D), and the masks likewise (B K,)."""
    fields = {
        name: value.flatten(0, 1)
        for name in ("region", "sentence", "patches", "tokens", "attended")
        if (value := getattr(batch, name)) is not None and value.ndim == 3
    }
    masks = {
        name: value.flatten()
        for name in ("has_pair", "in_view", "in_context")
        if (value := getattr(batch, name)) is not None
    }
    return batch._replace(**fields, **masks)


def _unit(rows: Tensor, valid: Tensor | None) -> Tensor:
    # Masked rows become 1 before the division, so that NaN in them reaches neither the loss nor a gradient.
    if valid is not None:
        rows = torch.where(valid[:, None], rows, 1.0)
    return F.normalize(rows, dim=1)


def _share(total: Tensor, count: Tensor, own_rows: int, all_rows: int) -> Tensor:
    """This rank's share of a mean over the `count` valid rows of all ranks; `total` is its own rows' sum."""
    return total * (all_rows / own_rows) / count.clamp(min=1)
