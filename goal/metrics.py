"""Retrieval metrics on embeddings: ranks, recall@k, mean average precision@k and twins accuracy.

Letters: N pictures, M texts, Q queries, G gallery items, D embedding width.
Similarity is the cosine, in double precision: raw and normalised embeddings give the same metrics.
Ties count against the model: a wrong item whose cosine equals the right one's (within TIE) ranks before it,
so a model whose embeddings are all equal retrieves nothing. `chunk` bounds the memory to chunk x chunk
similarities and does not change the result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Cosines closer than this are equal: fp64 rounding is near 1e-15, fp32 embeddings differ by about 1e-8.
TIE = 1e-12
CHUNK = 2048


@dataclass(frozen=True)
class Ranks:
    """1-based rank of the best-ranked right item of every query; 0 for a picture without any text."""

    image_to_text: Int[Tensor, " N"]
    text_to_image: Int[Tensor, " M"]


@dataclass(frozen=True)
class Twins:
    """Whether each picture of a pair prefers its own text (image_to_text) and each text its own picture.

    Columns: the picture itself, its twin.
    """

    image_to_text: Bool[Tensor, "N 2"]
    text_to_image: Bool[Tensor, "N 2"]


def ranks(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "M D"],
    text_to_image: Int[Tensor, " M"],
    chunk: int = CHUNK,
) -> Ranks:
    """Rank of the right item in both directions; a picture may have several texts.

    `text_to_image[j]` is the picture that text j describes. A text's rank is that of its picture among all
    pictures. A picture's rank is that of its best text; its other texts do not count as wrong items.
    Raises ValueError for embeddings that are empty or not finite and for a picture that does not exist.
    """
    _check(image, text)
    pictures, texts = len(image), len(text)
    if text_to_image.shape != (texts,) or ((text_to_image < 0) | (text_to_image >= pictures)).any():
        raise ValueError(f"text_to_image must name one of {pictures} pictures for each of {texts} texts")
    own = torch.cat(
        [(_unit(image[text_to_image[rows]]) * _unit(text[rows])).sum(1) for rows in _blocks(texts, chunk)]
    )
    best = torch.full((pictures,), float("inf"), dtype=own.dtype, device=own.device)
    best.scatter_reduce_(0, text_to_image, own, "amax", include_self=False)

    # Count the items that score no less than the right one. For a text, this is its rank, because its own
    # picture is counted too. A picture's rank starts at 1, and its own texts are subtracted below.
    text_rank = torch.zeros(texts, dtype=torch.long, device=text.device)
    image_rank = torch.ones(pictures, dtype=torch.long, device=image.device)
    for i in _blocks(pictures, chunk):
        block = _unit(image[i])
        for j in _blocks(texts, chunk):
            scores = block @ _unit(text[j]).T
            image_rank[i] += _count(scores >= best[i, None] - TIE, 1)
            text_rank[j] += _count(scores >= own[None, j] - TIE, 0)
    # The picture's own best text and those that tie with it were counted as wrong items.
    image_rank.scatter_add_(0, text_to_image, -(own >= best[text_to_image] - TIE).long())
    return Ranks(torch.where(torch.isfinite(best), image_rank, 0), text_rank)


def recall(rank: Int[Tensor, " Q"], ks: Sequence[int]) -> dict[int, float]:
    """Percentage of the queries whose rank is at most k; rank 0 (nothing to find) counts as no query."""
    rank = rank[rank > 0]
    return {k: 100.0 * int((rank <= k).sum()) / len(rank) for k in ks}


def recall_at_k(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "M D"],
    text_to_image: Int[Tensor, " M"],
    ks: Sequence[int],
    chunk: int = CHUNK,
) -> dict[str, dict[int, float]]:
    """Recall@k in percent, both directions; a picture is a hit when any of its texts is among its first k."""
    both = ranks(image, text, text_to_image, chunk)
    return {
        "image_to_text": recall(both.image_to_text, ks),
        "text_to_image": recall(both.text_to_image, ks),
    }


def average_precision_at_k(
    query: Float[Tensor, "Q D"],
    gallery: Float[Tensor, "G D"],
    relevant: Sequence[Sequence[int]],
    k: int,
    chunk: int = CHUNK,
) -> Float[Tensor, " Q"]:
    """Average precision of every query over its first k items, in [0, 1].

    The sum of the precisions at the relevant items among the first k, divided by the number of relevant
    items, retrieved or not. Raises ValueError for a query without relevant items, and for items that repeat
    or do not exist.
    """
    _check(query, gallery)
    wanted = _padded(relevant, len(query), len(gallery)).to(query.device)
    blocks = _blocks(len(query), chunk)
    return torch.cat([_precision(query[rows], gallery, wanted[rows], k, chunk) for rows in blocks])


def map_at_k(
    query: Float[Tensor, "Q D"],
    gallery: Float[Tensor, "G D"],
    relevant: Sequence[Sequence[int]],
    k: int,
    chunk: int = CHUNK,
) -> float:
    """Mean over the queries of average_precision_at_k, in [0, 1]."""
    return float(average_precision_at_k(query, gallery, relevant, k, chunk).mean())


def twins(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "N D"],
    twin: Float[Tensor, "N D"],
    twin_text: Float[Tensor, "N D"],
) -> Twins:
    """Whether each of two nearly equal pictures, and each of their texts, prefers its own; a tie is wrong."""
    _check(torch.cat([image, twin]), torch.cat([text, twin_text]))
    pictures = torch.stack([_unit(image), _unit(twin)], 1)
    texts = torch.stack([_unit(text), _unit(twin_text)], 1)
    scores = pictures @ texts.mT
    own = scores.diagonal(dim1=1, dim2=2)
    # Columns: (picture, twin's text) and (twin, picture's text).
    other = scores.flip(2).diagonal(dim1=1, dim2=2)
    return Twins(image_to_text=own > other + TIE, text_to_image=own > other.flip(1) + TIE)


def _precision(query: Tensor, gallery: Tensor, wanted: Tensor, k: int, chunk: int) -> Tensor:
    present = wanted >= 0
    unit = _unit(query)
    own = torch.stack([(unit * _unit(gallery[items])).sum(1) for items in wanted.clamp(min=0).T], 1)
    own = torch.where(present, own, -torch.inf).sort(dim=1, descending=True).values
    before = torch.zeros_like(wanted)
    for columns in _blocks(len(gallery), chunk):
        scores = unit @ _unit(gallery[columns]).T
        for slot in range(wanted.shape[1]):
            before[:, slot] += _count(scores >= own[:, slot, None] - TIE, 1)
    # Keep the wrong items at or before each relevant one: subtract the relevant items that were counted.
    before -= (own[:, None, :] >= own[:, :, None] - TIE).sum(2)
    found = torch.arange(1, wanted.shape[1] + 1, device=query.device)
    rank = before + found
    hit = torch.isfinite(own) & (rank <= k)
    return torch.where(hit, found / rank.double(), 0.0).sum(1) / present.sum(1)


def _padded(relevant: Sequence[Sequence[int]], queries: int, gallery: int) -> Tensor:
    """Relevant items as (Q, R), -1 where a query has fewer than R."""
    if len(relevant) != queries:
        raise ValueError(f"relevant holds {len(relevant)} lists for {queries} queries")
    table = torch.full((queries, max(map(len, relevant))), -1)
    for row, items in enumerate(relevant):
        if not items or len(set(items)) < len(items) or not 0 <= min(items) <= max(items) < gallery:
            raise ValueError(f"relevant[{row}] must name different items of {gallery}, found {list(items)}")
        table[row, : len(items)] = torch.tensor(items)
    return table


def _check(first: Tensor, second: Tensor) -> None:
    for name, values in (("first", first), ("second", second)):
        if len(values) == 0:
            raise ValueError(f"the {name} embeddings are empty")
        if not torch.isfinite(values).all():
            raise ValueError(f"the {name} embeddings hold NaN or infinity")


def _unit(values: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values.double(), dim=1)


def _blocks(length: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def _count(mask: Tensor, dim: int) -> Tensor:
    # NumPy counts booleans about ten times as fast as torch does on a CPU.
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=dim))
    return mask.count_nonzero(dim)
