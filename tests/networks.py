"""Small networks for tests of weights, and embeddings of a picture and a text by every library."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import factory
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from goal import clip, text
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


def picture(width: int = 50, height: int = 40) -> Image.Image:
    """A picture whose centre crop to 32 pixels is at the same place for open_clip and transformers."""
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))


@torch.inference_mode()
def ours(model: GoalClip, image: Image.Image, caption: str) -> torch.Tensor:
    """Unit vectors (2, D) of a picture, prepared as the model says, and of a text."""
    ids = text.tokenize(caption, [], model.spec.context_length).ids
    model.eval()
    found = model.encode_images(clip.preprocess(model.spec)(image)[None]), model.encode_texts(ids[None])
    return F.normalize(torch.cat(found), dim=-1)


@torch.inference_mode()
def by_transformers(folder: Path, image: Image.Image, caption: str) -> torch.Tensor:
    """The same by transformers' CLIPModel and CLIPProcessor of a folder."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(text=[caption], images=[image], padding=True, truncation=True, return_tensors="pt")
    found = model(**inputs)
    return torch.cat([found.image_embeds, found.text_embeds])


@torch.inference_mode()
def by_open_clip(name: str, image: Image.Image, caption: str, **options: object) -> torch.Tensor:
    """The same by open_clip's create_model_and_transforms(name, **options)."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    found = model.eval().encode_image(preprocess(image)[None]), model.encode_text(tokenizer([caption]))
    return F.normalize(torch.cat(found), dim=-1)
