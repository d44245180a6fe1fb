"""The whole step against an independent implementation (fixtures goal_step and hf_clip_tiny)."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from goal import losses, text, weights
from goal.boxes import patch_masks
from goal.model.network import Features, GoalClip

FIXTURES = Path(__file__).parent / "fixtures"
STEP = load_file(FIXTURES / "goal_step.safetensors")
PAIRS = len(STEP["boxes"])
IDS = torch.cat([STEP["global_ids"], STEP["local_ids"]])
IMAGES = torch.cat([STEP["global_images"], STEP["local_images"]])


@pytest.fixture(scope="module")
def model() -> GoalClip:
    return weights.from_huggingface(load_file(FIXTURES / "hf_clip_tiny.safetensors"))


def trimmed(ids: torch.Tensor) -> list[torch.Tensor]:
    return [row[: int(row.nonzero()[-1]) + 1] for row in ids]


def padded_texts(model: GoalClip) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of all texts and the mean tokens of the spans, with every text padded to 248 tokens."""
    return _read(model.text_features(IDS))


def trimmed_texts(model: GoalClip) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, with every text padded to the longest."""
    return _read(model.text_features(text.pad(trimmed(IDS))))


def _read(features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    means = [features.tokens[row, start:end].mean(0) for row, (start, end) in enumerate(STEP["spans"])]
    return features.pooled, torch.stack(means)


@torch.no_grad()
@pytest.mark.parametrize("read", [padded_texts, trimmed_texts])
def test_the_step(model: GoalClip, read) -> None:
    texts, means = read(model)
    seen = model.image_features(IMAGES)
    spec = model.spec
    touched = patch_masks(STEP["boxes"], spec.image_size, spec.patch_size).float()
    shares = touched / touched.sum(1, keepdim=True)
    patches = model.project_patches((shares[:, None] @ seen.tokens[:PAIRS])[:, 0])
    tokens = model.project_tokens(means)
    # The embeddings in the file are normalised, although its description says they are not.
    for ours, name in (
        (seen.pooled, "image_embeds"),
        (texts, "text_embeds"),
        (patches, "pooled_patches"),
        (tokens, "pooled_tokens"),
    ):
        torch.testing.assert_close(F.normalize(ours, dim=1), STEP[name], atol=1e-4, rtol=0)
    embeddings = losses.Embeddings(
        image=seen.pooled[:PAIRS],
        text=texts[:PAIRS],
        region=seen.pooled[PAIRS:],
        sentence=texts[PAIRS:],
        patches=patches,
        tokens=tokens,
        short=None,
        **dict.fromkeys(("has_pair", "in_view", "in_context"), torch.ones(PAIRS, dtype=torch.bool)),
    )
    objective = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}
    values = losses.terms(embeddings, model.scale(), objective)
    ours = torch.stack([*(values[name] for name in objective), losses.weighted(values, objective)])
    torch.testing.assert_close(ours, STEP["losses"], atol=0, rtol=1e-4)
