"""Recall on the validation split while a training goes on."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from goal.training.validation import Validation
from tests import trainings


def test_pictures_with_the_same_caption_tie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption encoded in two batches has other last bits in each, which must not decide which is nearer."""
    monkeypatch.chdir(tmp_path)
    rows = trainings.rows(9, Path("images"))
    rows = [replace(row, captions=("The same words for all of them.",)) for row in rows]
    measured = Validation(rows, trainings.SPEC, 10.0, 4).measure(trainings.model(), nullcontext, 1)
    # Each picture has the same cosine to all texts, its own included: a tie counts against the model.
    assert measured["image_to_text"] == {"r1": 0.0, "r5": 0.0, "r10": 100.0}
