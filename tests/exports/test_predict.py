"""The rows of `goal embed`: unit vectors in Arrow's own arrays, in blocks."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from goal.exports import predict
from tests import tiny


def test_pictures_and_texts_come_out_in_their_order_as_unit_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with every block of two rows as with one block."""
    tiny.make(tmp_path, monkeypatch)
    texts = ["A red ball.", "A boat.", "Rain."]
    found = []
    for block in (100, 2):
        monkeypatch.setattr(predict, "BLOCK", block)
        predict.run(
            tiny.params(), Path("models/base"), [Path("data/tiny/images")], texts, Path("out.parquet")
        )
        found.append(pq.read_table("out.parquet"))
    assert found[0].schema.remove_metadata() == predict.SCHEMA
    assert found[0].to_pylist() == found[1].to_pylist()
    rows = found[0].to_pylist()
    assert [row["kind"] for row in rows] == ["image"] * 6 + ["text"] * 3
    assert [row["input"] for row in rows[6:]] == texts
    lengths = torch.tensor([row["embedding"] for row in rows]).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(9))
