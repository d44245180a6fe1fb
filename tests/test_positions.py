"""Stretching the position table: the parity case, Long-CLIP's recipe row by row, and other lengths."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from goal.errors import UserError
from goal.positions import longest, stretch

PARITY = load_file(Path(__file__).parent / "fixtures" / "positions.safetensors")


def by_recipe(table: torch.Tensor) -> torch.Tensor:
    """Long-CLIP's stretch, row by row: keep 20, divide each interval in 4, continue the last difference."""
    rows = [table[row] for row in range(20)]
    for row in range(20, 76):
        rows += [table[row] + quarter / 4 * (table[row + 1] - table[row]) for quarter in range(4)]
    rows += [table[76] + quarter / 4 * (table[76] - table[75]) for quarter in range(4)]
    return torch.stack(rows)


def test_parity() -> None:
    torch.testing.assert_close(stretch(PARITY["source"], 248), PARITY["stretched"], atol=1e-6, rtol=0)


def test_248_rows_equal_long_clips_recipe() -> None:
    table = torch.randn(77, 5)
    torch.testing.assert_close(stretch(table, 248), by_recipe(table), atol=1e-6, rtol=0)


def test_kept_rows_are_the_same_bits() -> None:
    assert torch.equal(stretch(PARITY["source"], 248)[:20], PARITY["source"][:20])


@given(length=st.integers(78, 248), keep=st.integers(0, 20))
def test_a_straight_line_stays_straight(length: int, keep: int) -> None:
    line = torch.arange(77.0)[:, None]
    stretched = stretch(line, length, keep)[:, 0]
    assert stretched.shape == (length,)
    assert torch.equal(stretched[:keep], line[:keep, 0])
    steps = stretched[keep:].double().diff()
    expected = torch.full_like(steps, (77 - keep) / (length - keep))
    torch.testing.assert_close(steps, expected, atol=1e-4, rtol=0)
    assert stretched[keep] == keep


@pytest.mark.parametrize("length", [2, 10, 76, 77])
def test_a_length_up_to_the_tables_gives_its_first_rows(length: int) -> None:
    assert torch.equal(stretch(PARITY["source"], length), PARITY["source"][:length])


def test_the_result_is_a_copy_of_the_same_dtype() -> None:
    table = torch.randn(77, 4, dtype=torch.float16)
    for length in (30, 100):
        stretched = stretch(table, length)
        assert stretched.dtype == torch.float16
        stretched.zero_()
    assert table.abs().sum() > 0


def test_the_longest_for_keep_20_is_248() -> None:
    assert longest(77) == 248
    assert stretch(PARITY["source"], 300, keep=2).shape == (300, 64)


@pytest.mark.parametrize("length", [-1, 0, 1, 249, 10_000])
def test_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(UserError, match=rf"context_length {length}: must be 2 to 248 tokens"):
        stretch(PARITY["source"], length)


@pytest.mark.parametrize("keep", [-1, 76, 77])
def test_a_keep_out_of_range_is_refused(keep: int) -> None:
    with pytest.raises(UserError, match=f"keep_positions {keep}"):
        stretch(PARITY["source"], 80, keep)
