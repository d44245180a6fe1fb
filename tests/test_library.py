"""docs/library.md: its code runs as it stands, and trains by open_clip's and by transformers' own loop."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.imports import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def run(section: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute the Python blocks of a section of the page in the namespace `names`."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(compile(block, f"docs/library.md, {section}", "exec"), names)
    return names


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page's first section defines, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return run("A sample", {})


def test_a_sample_holds_the_disc_and_its_sentence(names: dict[str, Any]) -> None:
    first = names["samples"][0]
    # The disc is at (90, 30, 140, 80) of 160 x 120 pixels. In the view, scaled by 0.8, 16 pixels cut off on
    # each side, it is at (56, 24, 96, 64); patches have 12 pixels.
    expected = torch.zeros(8, 8)
    expected[2:6, 4:8] = 1
    assert torch.equal(first["patches"], expected.flatten())
    words = first["caption"][first["words"].bool()]
    assert torch.equal(words, first["sentence"][1 : 1 + len(words)])


def test_open_clips_trainer_takes_five_steps(names: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run("open_clip's trainer", names)
    model, samples = names["model"], names["samples"]
    assert {int(state["step"]) for state in names["optimizer"].state.values()} == {5}
    for term in ("Global_loss", "Local_loss", "Tsl_image_loss", "Tsl_text_loss"):
        assert re.search(rf"{term}: \d", caplog.text)
    # A mean over all that the text tower pools is its embedding: the projections are those of the network.
    batch = names["sides"](samples[:4])
    at = batch[1]["caption"].argmax(1)
    batch[1]["words"] = torch.nn.functional.one_hot(at, batch[1]["words"].shape[1]).float()
    with torch.no_grad():
        found = model.eval()(*batch)
    torch.testing.assert_close(found["tokens"], found["text"])


def test_transformers_trainer_takes_five_steps(names: dict[str, Any]) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate (pip install .[dev])")
    run("transformers' Trainer", names)
    trainer, samples = names["trainer"], names["samples"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(losses) == 5
    assert all(torch.isfinite(torch.tensor(losses)))
    model = trainer.model.eval().cpu()
    ids = torch.stack([one["caption"] for one in samples[:4]])
    pictures = torch.stack([one["picture"] for one in samples[:4]])
    with torch.no_grad():
        # Both are the hidden states that the network itself pools, before its last layer norm.
        text, words = names["embed_texts"](model, ids)
        last = words[torch.arange(4), ids.argmax(1)]
        torch.testing.assert_close(model.text_projection(model.text_model.final_layer_norm(last)), text)
        image, grid = names["embed_images"](model, pictures)
        hidden = model.vision_model(pixel_values=pictures).last_hidden_state
        pooled = model.visual_projection(model.vision_model.post_layernorm(hidden[:, 0]))
        torch.testing.assert_close(pooled, image)
        assert grid.shape == (4, 64, 64)
