"""Texts of different length sharing the rows of the text tower, so that no time goes into padding.

Letters: B texts, R rows, L tokens of a row, T tokens of one text (BOS and EOS included), S spans.
"""

from collections.abc import Sequence
from heapq import heapreplace
from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Rows are at most this many times as long as the longest text.
_WIDEST = 2
# Numbers of rows to choose from; many texts fill their rows well with any.
_TRIED = 8
# Tokens of a row at which attention costs what all else in a block does: 6 x W, here of ViT-B's text tower.
_ATTENTION = 3072
# The attention kernels of GPUs want rows of masks to begin on 8 numbers.
_MULTIPLE = 8


class Packed(NamedTuple):
    """B texts laid into R rows of L tokens; a NamedTuple, so that DDP and torch.compile see its tensors."""

    ids: Int[Tensor, "R L"]  # token ids, 0 where a row is not filled
    positions: Int[Tensor, "R L"]  # place of the token in its own text
    segments: Int[Tensor, "R L"]  # number of the text + 1, 0 where a row is not filled
    rows: Int[Tensor, " B"]  # the row a text lies in
    starts: Int[Tensor, " B"]  # its first token there
    ends: Int[Tensor, " B"]  # after its last token
    eos: Int[Tensor, " B"]  # the token that stands for the whole text


def lay(lengths: Sequence[int]) -> list[list[int]]:
    """Spread texts of `lengths` tokens over rows so that the tower computes least; returns each row's texts.

    For some numbers of rows, each text, longest first, goes to the row that is emptiest; of these layouts the
    one whose rows, all as long as the fullest, cost least wins. On DOCCI's captions 2 to 3 % of what is
    computed is padding; best-fit into rows as long as the longest text leaves 12 % at 8 pairs a batch.
    """
    total, longest = sum(lengths), max(lengths)
    most = ceil(total / longest) + 1
    fewest = max(ceil(total / (_WIDEST * longest)), most - _TRIED)
    layouts = (_spread(lengths, rows) for rows in range(fewest, most + 1))
    return min(layouts, key=lambda layout: _cost(len(layout), width(lengths, layout)))


def width(lengths: Sequence[int], layout: Sequence[Sequence[int]]) -> int:
    """Tokens of every row: what the fullest holds, rounded up to what kernels like."""
    fullest = max(sum(lengths[item] for item in row) for row in layout)
    return ceil(fullest / _MULTIPLE) * _MULTIPLE


def _spread(lengths: Sequence[int], rows: int) -> list[list[int]]:
    layout: list[list[int]] = [[] for _ in range(rows)]
    filled = [(0, row) for row in range(rows)]
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        taken, row = filled[0]
        layout[row].append(item)
        heapreplace(filled, (taken + lengths[item], row))
    return layout


def _cost(rows: int, length: int) -> float:
    return rows * length * (1 + length / _ATTENTION)


def pack(texts: Sequence[Int[Tensor, " _"]]) -> Packed:
    """Lay token ids of B texts, each with BOS and EOS, into rows (see `lay`).

    Zero padding after a text is cut off; its EOS is its largest id, as in CLIP. Raises ValueError when there
    is no text, or one that holds padding only.
    """
    if not texts:
        raise ValueError("pack: no texts")
    lengths = [_length(text) for text in texts]
    layout = lay(lengths)
    shape = (len(layout), width(lengths, layout))
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.zeros(shape, dtype=torch.long)
    places = torch.zeros((4, len(texts)), dtype=torch.long)
    for row, items in enumerate(layout):
        start = 0
        for item in items:
            end = start + lengths[item]
            ids[row, start:end] = texts[item][: lengths[item]]
            positions[row, start:end] = torch.arange(lengths[item])
            segments[row, start:end] = item + 1
            places[:, item] = torch.tensor([row, start, end, start + int(texts[item].argmax())])
            start = end
    return Packed(ids, positions, segments, *places)


def _length(text: Tensor) -> int:
    # 0 is also a token ("!"), but what comes after the last other one is padding: a text ends with its EOS.
    filled = text.nonzero()
    if not len(filled):
        raise ValueError("pack: a text without tokens")
    return int(filled[-1]) + 1


def attention_mask(segments: Int[Tensor, "R L"], dtype: torch.dtype) -> Float[Tensor, "R 1 L L"]:
    """0 where a token may look, -inf elsewhere: at itself and at earlier tokens of its own text."""
    length = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    mask = torch.zeros(own.shape, dtype=dtype, device=segments.device)
    mask = mask.masked_fill(~(own & earlier), float("-inf"))
    return mask[:, None]


def span_weights(
    packed: Packed, texts: Int[Tensor, " S"], spans: Int[Tensor, "S 2"]
) -> Float[Tensor, "S R L"]:
    """Weights whose product with packed tokens (R, L, W) is the mean over each span (paper, section 3.3,
    TSL).

    `spans` are half-open token spans within their text, `texts` says which text. Tokens of a span that lie
    past the text's end do not count; a span without tokens gets zero weights.
    """
    count, length = packed.ids.shape
    start, end = (packed.starts[texts][:, None] + spans).unbind(1)
    end = torch.minimum(end, packed.ends[texts])
    place = torch.arange(length, device=spans.device)
    inside = (place >= start[:, None]) & (place < end[:, None])
    row = torch.arange(count, device=spans.device) == packed.rows[texts][:, None]
    weights = (row[:, :, None] & inside[:, None, :]).float()
    return weights / (end - start).clamp(min=1)[:, None, None]
