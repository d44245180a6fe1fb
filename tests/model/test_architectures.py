"""Which of open_clip's networks are supported; the others are refused with the reason."""

import re

import open_clip
import pytest
import torch
from open_clip import factory

from goal import clip
from goal.errors import UserError
from goal.model import architectures
from goal.model.network import GoalClip
from tests.imports import ROOT


def test_supported_names() -> None:
    names = {name for name, _ in clip.supported()}
    assert {("ViT-B-16", "openai"), ("ViT-B-16", "laion2b_s34b_b88k"), ("ViT-L-14-336", "openai")} <= set(
        clip.supported()
    )
    page = re.split(r"[\s,;]+", (ROOT / "docs" / "weights.md").read_text())
    assert names <= set(page)
    for name in sorted(names):
        with torch.device("meta"):
            GoalClip(architectures.spec_of(name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "ResNet"),
        ("coca_ViT-B-32", "CoCa"),
        ("ViT-B-16-SigLIP", "SigLIP"),
        ("convnext_base", "timm's convnext_base"),
        ("EVA02-B-16", "timm's"),
        ("xlm-roberta-base-ViT-B-32", "Hugging Face's xlm-roberta-base"),
        ("ViT-H-14-worldwide", "tokenizer is not CLIP's"),
        ("ViT-L-14-CLIPA", "tokenizer is not CLIP's"),
    ],
)
def test_other_networks_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"model.name {name}: not supported: .*{reason}") as caught:
        clip.load(name, pretrained="anything")
    assert "\n" not in str(caught.value)
    assert name not in {supported for supported, _ in clip.supported()}


def test_every_name_of_open_clip_is_supported_or_refused() -> None:
    for name in open_clip.list_models():
        reason = architectures.refusal(factory.get_model_config(name))
        assert bool(reason) != (name in architectures.names())
