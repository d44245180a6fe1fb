"""Texts of different length sharing the rows of the text tower, so that no time goes into padding.

Letters: B texts, R rows, L tokens of a row, T tokens of one text (BOS and EOS included), S spans.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Packed(NamedTuple):
    """B texts laid into R rows of L tokens; made on the host, moved to the device as a whole.

    A NamedTuple, so that DDP, torch.compile and pinning see the tensors inside.
    """

    ids: Int[Tensor, "R L"]  # token ids, 0 where a row is not filled
    positions: Int[Tensor, "R L"]  # place of the token in its own text
    segments: Int[Tensor, "R L"]  # number of the text + 1, 0 where a row is not filled
    rows: Int[Tensor, " B"]  # the row a text lies in
    starts: Int[Tensor, " B"]  # its first token there
    ends: Int[Tensor, " B"]  # after its last token, the EOS

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Packed":
        return Packed(*(part.to(device, non_blocking=non_blocking) for part in self))

    def pin_memory(self) -> "Packed":
        return Packed(*(part.pin_memory() for part in self))


def fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Best-fit decreasing: lay items of `lengths` into rows of `width`; returns each row's item numbers."""
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        fitting = [(left, row) for row, left in enumerate(room) if left >= lengths[item]]
        if fitting:
            _, row = min(fitting)
        else:
            row = len(rows)
            rows.append([])
            room.append(width)
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def pack(texts: Sequence[Int[Tensor, " _"]]) -> Packed:
    """Lay token ids of B texts, each with BOS and EOS, into as few rows as best-fit finds.

    A row is as long as the longest text. Whatever follows a text's EOS (its largest id, as in CLIP) is cut
    off. Raises ValueError when there is no text.
    """
    if not texts:
        raise ValueError("pack needs one text at least")
    trimmed = [text[: int(text.argmax()) + 1] for text in texts]
    lengths = [len(text) for text in trimmed]
    width = max(lengths)
    layout = fit(lengths, width)
    shape = (len(layout), width)
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.zeros(shape, dtype=torch.long)
    places = torch.zeros((3, len(texts)), dtype=torch.long)
    for row, items in enumerate(layout):
        start = 0
        for item in items:
            end = start + lengths[item]
            ids[row, start:end] = trimmed[item]
            positions[row, start:end] = torch.arange(lengths[item])
            segments[row, start:end] = item + 1
            places[:, item] = torch.tensor([row, start, end])
            start = end
    return Packed(ids, positions, segments, *places)


def attention_mask(segments: Int[Tensor, "R L"]) -> Float[Tensor, "R 1 L L"]:
    """0 where a token may look, -inf elsewhere: at itself and at earlier tokens of its own text."""
    length = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    mask = torch.zeros(own.shape, device=segments.device).masked_fill(~(own & earlier), float("-inf"))
    return mask[:, None]


def span_weights(
    packed: Packed, texts: Int[Tensor, " S"], spans: Int[Tensor, "S 2"]
) -> Float[Tensor, "S R L"]:
    """Weights whose product with packed tokens (R, L, W) is the mean over each span (paper, section 3.3,
    TSL).

    `spans` are half-open token spans within their text, `texts` says which. A span that is empty gets zero
    weights.
    """
    count, length = packed.ids.shape
    starts = packed.starts[texts][:, None] + spans
    place = torch.arange(length, device=spans.device)
    inside = (place >= starts[:, :1]) & (place < starts[:, 1:])
    row = torch.arange(count, device=spans.device) == packed.rows[texts][:, None]
    weights = (row[:, :, None] & inside[:, None, :]).float()
    return weights / (spans[:, 1] - spans[:, 0]).clamp(min=1)[:, None, None]
