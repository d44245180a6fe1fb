"""Every export form, out and in again by this project and by the library that it is for.

A picture from Pillow and a text, preprocessing included, give the same embeddings.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from transformers import CLIPImageProcessorPil

from goal import exports, weights
from goal.model.network import GoalClip
from tests import networks, tiny

MODEL = Path("models/base")
CAPTION = "A tall tree stands by the river. It is old. " * 4
HALF = (0.5, 0.5, 0.5)
# The default; and all that belongs to weights and that their shapes do not show.
MODELS = {
    "default": {},
    "odd": {
        "quick_gelu": True,
        "view": "squash",
        "mean": HALF,
        "std": HALF,
        "vision_heads": 4,
        "text_heads": 8,
    },
    "long": {"context_length": 248},
}


@pytest.fixture(params=MODELS)
def expected(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The embeddings (2, D) of the network itself, before it is exported from models/base."""
    tiny.make(tmp_path, monkeypatch)
    torch.manual_seed(1)
    model = GoalClip(replace(tiny.SPEC, **MODELS[request.param]))
    weights.save(model, MODEL)
    return networks.ours(model, networks.picture(), CAPTION)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def again(folder: Path) -> torch.Tensor:
    """By this project; the folder says all that its weights need."""
    model = weights.load(folder)
    assert replace(model.spec, name="") == replace(weights.load(MODEL).spec, name="")
    return networks.ours(model, networks.picture(), CAPTION)


FORMS: dict[str, Callable[[Path], torch.Tensor]] = {
    "open_clip": lambda folder: networks.by_open_clip(f"local-dir:{folder}", networks.picture(), CAPTION),
    "transformers": lambda folder: networks.by_transformers(folder, networks.picture(), CAPTION),
}


@pytest.mark.parametrize("form", FORMS)
def test_out_and_in_again(form: str, expected: torch.Tensor, caplog: pytest.LogCaptureFixture) -> None:
    exports.run(MODEL, Path("out"), form)
    same(FORMS[form](Path("out")), expected)
    same(again(Path("out")), expected)
    assert not [line for line in caplog.messages if "assuming" in line]


def test_onnx_and_its_preprocessing(expected: torch.Tensor) -> None:
    exports.run(MODEL, Path("out"), "onnx")
    views = CLIPImageProcessorPil.from_pretrained("out")(networks.picture(), return_tensors="np")
    context = weights.load(MODEL).spec.context_length
    ids = open_clip.SimpleTokenizer(context_length=context)([CAPTION])
    inputs = {"images": {"views": views["pixel_values"]}, "texts": {"ids": ids.numpy()}}
    found = [
        onnxruntime.InferenceSession(f"out/{name}.onnx", providers=["CPUExecutionProvider"]).run(None, one)[0]
        for name, one in inputs.items()
    ]
    same(torch.from_numpy(np.concatenate(found)), expected)


def test_the_weights_file_alone_in_open_clip(expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the line in docs/weights.md: what the name does not say is said."""
    spec = weights.load(MODEL).spec
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-here", spec.config)
    options = {
        "pretrained": str(MODEL / "model.safetensors"),
        "force_context_length": spec.context_length,
        "force_quick_gelu": spec.quick_gelu,
        "image_mean": spec.mean,
        "image_std": spec.std,
        "image_resize_mode": "squash" if spec.view == "squash" else "shortest",
    }
    same(networks.by_open_clip("ViT-here", networks.picture(), CAPTION, **options), expected)
