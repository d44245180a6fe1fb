"""Heat maps against a plain computation, and properties that hold for any network."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from goal import clip, text
from goal.evaluation import grounding
from goal.model.network import GoalClip
from tests import tiny

CAPTION = "A red ball lies on the grass. Two dogs sleep near it. The sky is blue."


@pytest.fixture(scope="module")
def model() -> GoalClip:
    torch.manual_seed(3)
    return GoalClip(tiny.SPEC).eval()


@pytest.fixture
def image() -> Image.Image:
    image = Image.new("RGB", (48, 32), "white")
    image.paste("red", (4, 4, 20, 20))
    return image


def test_maps_are_cosines_of_single_patches_with_sentence_means(model: GoalClip, image: Image.Image) -> None:
    found = grounding.ground(model, image, CAPTION)
    sentences = text.split_sentences(CAPTION)
    tokens = text.tokenize(CAPTION, sentences, tiny.SPEC.context_length)
    with torch.inference_mode():
        patches = model.image_features(clip.preprocess(model.spec)(image)[None]).tokens[0]
        words = model.text_features(tokens.ids[None]).tokens[0]
        for row, (start, end) in enumerate(tokens.spans):
            sentence = model.project_tokens(words[start:end].mean(0)[None])[0]
            for place, patch in enumerate(patches):
                expected = F.cosine_similarity(model.project_patches(patch[None])[0], sentence, dim=0)
                assert float(found.maps[row, place // 2, place % 2]) == pytest.approx(
                    float(expected), abs=1e-5
                )
    assert found.sentences == sentences
    assert (found.tokens, found.read) == (len(tokens.ids), len(tokens.ids))


def test_attention_is_what_an_independent_layer_computes(model: GoalClip, image: Image.Image) -> None:
    found = grounding.ground(model, image, CAPTION)
    plain = open_clip.model.CLIP(**tiny.SPEC.config)
    plain.load_state_dict(model.state_dict())
    plain.eval()
    block = plain.visual.transformer.resblocks[-1]
    inputs: list[torch.Tensor] = []
    block.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    with torch.inference_mode():
        plain.encode_image(clip.preprocess(model.spec)(image)[None])
        normed = block.ln_1(inputs[0])
        _, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)
    expected = weights[0, 1:, 1:].mean(0).reshape(2, 2)
    torch.testing.assert_close(found.attention, expected, atol=1e-5, rtol=1e-4)
    assert 0 < float(found.attention.sum()) < 1


def test_a_sentence_beyond_the_context_has_no_map(model: GoalClip, image: Image.Image) -> None:
    caption = "A red ball lies on the grass. " * 20
    found = grounding.ground(model, image, caption)
    assert len(found.sentences) == 20
    known = ~torch.isnan(found.maps).any(2).any(1)
    assert known.tolist() == [True] * int(known.sum()) + [False] * (20 - int(known.sum()))
    assert 5 < int(known.sum()) < 15
    assert torch.equal(torch.isnan(found.scores), ~known)
    assert found.read == tiny.SPEC.context_length < found.tokens


def test_a_blank_caption_has_no_sentences(model: GoalClip, image: Image.Image) -> None:
    found = grounding.ground(model, image, "  ")
    assert found.sentences == []
    assert found.maps.shape == (0, 2, 2)
    assert found.attention.shape == (2, 2)
