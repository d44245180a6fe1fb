"""Boxes, areas and stability of SAM's masks from their low-resolution logits, not from full-size masks.

The package scales logits (L, L) bilinearly to its input (S, S), cuts the padding off, scales bilinearly to
the picture (H, W) and only then thresholds. Both steps are separable: together they are
rows @ logits @ columns.T, one sparse matrix a side. A box needs that product only where its edges may lie (a
mask that has none there is multiplied out, alone).
Areas are counted at the size of SAM's input, or of the picture where that is smaller, a few masks at a time;
stability, where whole low-resolution pixels cannot decide it, likewise.

Letters: K masks; L side of the logits; H, W the picture's sides.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

# The package's: stable is a mask that thresholds this far above and below its own leave nearly as large.
STABILITY_OFFSET = 1.0
# Masks counted in full resolution at once: 4 MB each.
FINE_BATCH = 16
# Rows of the picture looked at for one edge before all are.
EDGE_ROWS = 4


@dataclass(frozen=True)
class Frame:
    """How logits lie over a picture: weights rows (H, L) and columns (W, L), each row summing to 1.

    input_size: height and width in pixels that the picture fills in SAM's padded input of padded x padded.
    """

    rows: Float[Tensor, "H L"]
    columns: Float[Tensor, "W L"]
    input_size: tuple[int, int]
    padded: int


def frame(
    image_size: tuple[int, int], input_size: tuple[int, int], side: int, padded: int, device: torch.device
) -> Frame:
    """The frame of a picture of image_size (height, width) pixels; side: L of the logits."""
    rows, columns = (
        _weights(long, short, side, padded).to(device)
        for long, short in zip(image_size, input_size, strict=True)
    )
    return Frame(rows, columns, input_size, padded)


def _weights(image: int, used: int, side: int, padded: int) -> Float[Tensor, "H L"]:
    """One side's two interpolations as a matrix: they are linear, so the identity shows their weights."""
    fine = functional.interpolate(torch.eye(side)[None], padded, mode="linear")[..., :used]
    return functional.interpolate(fine, image, mode="linear")[0].T.contiguous()


def area_ratio(logits: Float[Tensor, "K L L"], frame: Frame, threshold: float) -> Float[Tensor, " K"]:
    """Share of the picture where a mask's logits exceed the threshold; padding does not count."""
    shares = [logits.new_zeros(0)]
    for some in logits.split(FINE_BATCH) if len(logits) else ():
        shares.append((_fine(some, frame) > threshold).float().mean(dim=(1, 2)))
    return torch.cat(shares)


def _coarse_area(logits: Float[Tensor, "K L L"], frame: Frame, threshold: float) -> Float[Tensor, " K"]:
    """area_ratio from whole low-resolution pixels: quick, and off by half a pixel along the mask's edge."""
    inside = (logits > threshold).to(frame.rows.dtype)
    return inside @ frame.columns.mean(dim=0) @ frame.rows.mean(dim=0)


def stable(
    logits: Float[Tensor, "K L L"], frame: Frame, threshold: float, minimum: float
) -> Bool[Tensor, " K"]:
    """Whether each mask's stability score, as the package defines it, reaches the minimum."""
    high, low = threshold + STABILITY_OFFSET, threshold - STABILITY_OFFSET
    union = _coarse_area(logits, frame, low)
    score = _coarse_area(logits, frame, high) / union
    # Counting whole low-resolution pixels moves each edge by half a pixel at most: 4 n^0.5 / 2 of n pixels.
    pixels = union * (frame.columns.sum(dim=0) > 0).sum() * (frame.rows.sum(dim=0) > 0).sum()
    unsure = ((score - minimum).abs() < 2 * pixels.rsqrt()).nonzero()[:, 0]
    for some in unsure.split(FINE_BATCH) if len(unsure) else ():
        fine = _fine(logits[some], frame)
        score[some] = (fine > high).sum(dim=(1, 2)) / (fine > low).sum(dim=(1, 2))
    # An empty mask has no score (0 / 0), and is not stable.
    return score >= minimum


def _fine(logits: Float[Tensor, "K L L"], frame: Frame) -> Float[Tensor, "K h w"]:
    """Logits at the picture's size or, where that is larger, at the size that SAM saw."""
    padded, (height, width) = (frame.padded, frame.padded), frame.input_size
    fine = functional.interpolate(logits[None], padded, mode="bilinear")[..., :height, :width]
    if len(frame.rows) < height or len(frame.columns) < width:
        fine = functional.interpolate(fine, (len(frame.rows), len(frame.columns)), mode="bilinear")
    return fine[0]


def boxes(
    logits: Float[Tensor, "K L L"], frame: Frame, threshold: float
) -> tuple[Int[Tensor, "K 4"], Bool[Tensor, " K"]]:
    """First and last column and row of each mask in the picture, as x1, y1, x2, y2 with both ends inside.

    These are the package's numbers to the pixel. Second: whether the mask has a pixel at all.
    """
    logits = logits - threshold
    rows, columns = frame.rows, frame.columns
    peaks, flipped = logits.amax(dim=2), logits.flip(1)
    top, found = _first(logits, peaks, rows, columns)
    bottom, _ = _first(flipped, peaks.flip(1), rows.flip(0, 1), columns)
    logits = logits.mT
    peaks, flipped = logits.amax(dim=2), logits.flip(1)
    left, _ = _first(logits, peaks, columns, rows)
    right, _ = _first(flipped, peaks.flip(1), columns.flip(0, 1), rows)
    return torch.stack([left, top, len(columns) - 1 - right, len(rows) - 1 - bottom], dim=1), found


def _first(
    logits: Float[Tensor, "K L L"],
    peaks: Float[Tensor, "K L"],
    rows: Float[Tensor, "H L"],
    columns: Float[Tensor, "W L"],
) -> tuple[Int[Tensor, " K"], Bool[Tensor, " K"]]:
    """First row of the picture in which a mask has a pixel, and whether there is one.

    peaks: the largest logit of each row.
    """
    reach = rows > 0
    # Rows of the logits that lie in the padding reach no row of the picture.
    positive = (peaks > 0) & reach.any(dim=0)
    first_reached = reach.to(torch.uint8).argmax(dim=0)
    start = first_reached[positive.to(torch.uint8).argmax(dim=1)]
    # Every pixel is a convex sum of logits: before `start` nothing is positive, nor where no column of the
    # logits is; a few rows on from there something nearly always is.
    steps = torch.arange(int((first_reached[2:] - first_reached[:-2]).max()) + 1, device=rows.device)
    span = (start[:, None] + steps).clamp(max=len(rows) - 1)
    profile = rows[span] @ logits
    begin = (profile.amax(dim=2) > 0).to(torch.uint8).argmax(dim=1, keepdim=True)
    near = (begin + steps[:EDGE_ROWS]).clamp(max=len(steps) - 1)
    profile = profile.gather(1, near[:, :, None].expand(-1, -1, profile.shape[2]))
    hit = (profile @ columns.T).amax(dim=2) > 0
    first = span.gather(1, near).gather(1, hit.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
    found = hit.any(dim=1)
    for mask in (~found & positive.any(dim=1)).nonzero()[:, 0].tolist():
        hit = (rows @ logits[mask] @ columns.T).amax(dim=1) > 0
        found[mask] = hit.any()
        first[mask] = hit.to(torch.uint8).argmax()
    return first, found
