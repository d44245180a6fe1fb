"""Stretch the text tower's position table as Long-CLIP does, so that captions of more than 77 tokens fit."""

import torch
from jaxtyping import Float
from torch import Tensor

from goal.errors import UserError


def longest(rows: int, keep: int = 20) -> int:
    """The longest table that `stretch` makes of `rows` rows: 4 rows for each one after the first `keep`."""
    return 4 * rows - 3 * keep


def stretch(positions: Float[Tensor, "P W"], length: int, keep: int = 20) -> Float[Tensor, "length W"]:
    """Interpolate a position table to `length` rows; the first `keep` rows stay as they are.

    P rows (tokens), W text width. The rows after `keep` are spread evenly over the new length by linear
    interpolation; beyond the last row, the last difference is continued. 77 -> 248 with keep 20 gives
    Long-CLIP's table (paper, section 3.1): each interval divided in four. A length of P or less gives the
    first `length` rows: the tower is causal, so later positions do not affect them.

    Raises UserError for a `length` or `keep` that the table cannot give.
    """
    rows = len(positions)
    if not 0 <= keep <= rows - 2:
        raise UserError(f"keep_positions {keep}: must leave 2 of the table's {rows} rows to stretch")
    if length < 2 or length > longest(rows, keep):
        raise UserError(
            f"context_length {length}: must be 2 to {longest(rows, keep)} tokens"
            f" (4 x {rows} rows - 3 x keep_positions {keep})"
        )
    if length <= rows:
        return positions[:length].clone()
    step = (rows - keep) / (length - keep)
    source = keep + step * torch.arange(length - keep, dtype=torch.float64, device=positions.device)
    below = source.floor().clamp(max=rows - 2).long()
    share = (source - below)[:, None]
    table = positions.double()
    stretched = table[below] + share * (table[below + 1] - table[below])
    return torch.cat([positions[:keep], stretched.to(positions.dtype)])
