"""Small networks for tests of weights: one registered with open_clip, one in Hugging Face's layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip import factory
from safetensors.torch import load_file

from goal.model import architectures
from goal.model.network import GoalClip

HUGGINGFACE = load_file(Path(__file__).parent / "fixtures" / "hf_clip_tiny.safetensors")
NAME = "ViT-tiny"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 4, "layers": 2},
}


def register(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register ViT-tiny and ViT-tiny-quickgelu with open_clip for the test."""
    known = factory._MODEL_CONFIGS | {NAME: CONFIG, f"{NAME}-quickgelu": {**CONFIG, "quick_gelu": True}}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", known)
    return NAME


def tiny(name: str = NAME, **changes: object) -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(replace(architectures.spec_of(name), **changes))


def equal(one: GoalClip, other: GoalClip) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(value, theirs[key]) for key, value in ours.items())
