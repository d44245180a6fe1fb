"""The objective against loops written from the paper: values and gradients, with masks and several ranks."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from goal import losses

PARITY = Path(__file__).parents[1].parent / "shared" / "parity" / "goal_step.safetensors"


def rows(count: int, seed: int, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64).requires_grad_()


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def naive_contrastive(image, text, scale, valid=None, gamma=0.0):
    """InfoNCE by loops: -log of the pair's share among the valid candidates, both ways."""
    keep = [i for i in range(len(image)) if valid is None or valid[i]]
    total = (image.sum() + text.sum()) * 0
    for i in keep:
        for anchor, candidates in ((image[i], text), (text[i], image)):
            logits = []
            for j in keep:
                margin = gamma * cosine(text[i], text[j]).detach() if i != j else 0.0
                logits.append(scale * (cosine(anchor, candidates[j]) + margin))
            total = total + torch.logsumexp(torch.stack(logits), 0) - logits[keep.index(i)]
    return total / (2 * max(1, len(keep)))


def naive_similarity(pooled, target, valid=None):
    keep = [i for i in range(len(pooled)) if valid is None or valid[i]]
    total = (pooled.sum() + target.sum()) * 0
    for i in keep:
        total = total + (1 - cosine(pooled[i], target[i])) ** 2
    return total / max(1, len(keep))


def assert_same(ours, naive, inputs):
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(naive, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 13])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_contrastive_equals_the_loops(count, gamma):
    image, text = rows(count, 0), rows(count, 1)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    ours = losses.contrastive(image, text, scale, hard_negative=gamma)
    assert_same(ours, naive_contrastive(image, text, scale, gamma=gamma), [image, text, scale])


@pytest.mark.parametrize("valid", [[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
def test_masked_pairs_are_neither_queries_nor_negatives(valid):
    image, text, valid = rows(5, 0), rows(5, 1), torch.tensor(valid, dtype=torch.bool)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    ours = losses.contrastive(image, text, scale, valid)
    assert_same(ours, naive_contrastive(image, text, scale, valid) + 0 * scale, [image, text, scale])


def test_contrastive_does_not_depend_on_the_norm_of_embeddings():
    image, text = rows(6, 0), rows(6, 1)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (image, text)]
    torch.testing.assert_close(losses.contrastive(image * 3, text / 9, 5.0), losses.contrastive(*unit, 5.0))


def test_contrastive_of_known_values():
    alike = torch.eye(4, dtype=torch.float64)
    expected = math.log(1 + 3 * math.exp(-2.0))
    assert losses.contrastive(alike, alike, 2.0).item() == pytest.approx(expected, rel=1e-12)
    one = torch.ones(4, 3, dtype=torch.float64)
    assert losses.contrastive(one, one, 50.0).item() == pytest.approx(math.log(4), rel=1e-12)


def test_hard_negatives_raise_the_loss_only_for_similar_captions():
    image, text = rows(4, 0).detach(), torch.eye(4, 8, dtype=torch.float64)
    plain = losses.contrastive(image, text, 5.0)
    assert losses.contrastive(image, text, 5.0, hard_negative=3.0).item() == pytest.approx(
        plain.item(), rel=1e-12
    )
    text[1] = text[0]
    assert losses.contrastive(image, text, 5.0, hard_negative=3.0) > losses.contrastive(image, text, 5.0)


def test_a_negative_with_the_same_caption_must_lie_gamma_below_in_cosine():
    """Two pairs, one caption. Worked by hand: scale 10, gamma 0.5, image 1 at cosine 0.5 of the caption."""
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    image = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    # Positive and negative logits: image 0: 10, 15; image 1: 5, 10; caption 0: 10, 10 (margin just met);
    # caption 1: 5, 15.
    expected = (2 * math.log1p(math.exp(5)) + math.log(2) + math.log1p(math.exp(10))) / 4
    ours = losses.contrastive(image, text, 10.0, hard_negative=0.5).item()
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("valid", [None, [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
def test_token_similarity_equals_the_loops(valid):
    pooled, target = rows(5, 2), rows(5, 3)
    valid = None if valid is None else torch.tensor(valid, dtype=torch.bool)
    assert_same(
        losses.token_similarity(pooled, target, valid),
        naive_similarity(pooled, target, valid),
        [pooled, target],
    )


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 0.0])
def test_masked_rows_may_hold_anything(junk):
    valid = torch.tensor([True, False, True])
    for term in (
        lambda a, b: losses.contrastive(a, b, 5.0, valid),
        lambda a, b: losses.token_similarity(a, b, valid),
    ):
        left, right = rows(3, 0).detach(), rows(3, 1).detach()
        clean = term(left, right)
        left[1], right[1] = junk, junk
        left.requires_grad_()
        value = term(left, right)
        assert value.item() == clean.item()
        (gradient,) = torch.autograd.grad(value, left)
        assert gradient.isfinite().all()
        assert not gradient[1].any()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_attention_is_the_weighted_mean_of_the_patches(temperature):
    sentences, patches = rows(6, 0).unflatten(0, (2, 3)), rows(8, 1).unflatten(0, (2, 4))
    expected = torch.zeros(2, 3, 8, dtype=torch.float64)
    for picture in range(2):
        for number in range(3):
            asked = sentences[picture, number]
            shares = [(cosine(asked, patch) / temperature).exp() for patch in patches[picture]]
            found = sum(s * patch for s, patch in zip(shares, patches[picture], strict=True)) / sum(shares)
            expected[picture, number] = found
    torch.testing.assert_close(losses.attend(sentences, patches, temperature), expected)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            losses.attend(sentences, patches, wrong)


def naive_late_interaction(patches, words, lengths, scale):
    count, total = len(patches), 0.0
    to_text, to_image = torch.zeros(2, count, count, dtype=torch.float64).unbind(0)
    for i in range(count):
        for j in range(count):
            all_cosines = [[cosine(patch, word) for word in words[j][: lengths[j]]] for patch in patches[i]]
            grid = torch.stack([torch.stack(row) for row in all_cosines])
            to_text = (
                to_text
                + torch.nn.functional.one_hot(torch.tensor(i * count + j), count**2).view(count, count)
                * grid.amax(1).mean()
            )
            to_image = (
                to_image
                + torch.nn.functional.one_hot(torch.tensor(j * count + i), count**2).view(count, count)
                * grid.amax(0).mean()
            )
    for logits in (scale * to_text, scale * to_image):
        total = total + torch.logsumexp(logits, 1).sum() - logits.diagonal().sum()
    return total / (2 * count)


def test_late_interaction_equals_the_loops():
    """Padding is no word, whatever it holds."""
    lengths = [4, 1, 2]
    patches, words = rows(3 * 5, 0).unflatten(0, (3, 5)), rows(3 * 4, 1).unflatten(0, (3, 4))
    is_word = torch.arange(4) < torch.tensor(lengths)[:, None]
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    ours = losses.late_interaction(patches, words, is_word, scale)
    assert_same(ours, naive_late_interaction(patches, words, lengths, scale), [patches, words, scale])
    junk = torch.where(is_word[..., None], words, 7.0)
    torch.testing.assert_close(losses.late_interaction(patches, junk, is_word, scale), ours)


def embeddings(count: int, has_pair, in_view, in_context) -> losses.Embeddings:
    """Two pairs per picture; the masks name the pictures of which they hold for the second one too."""

    def drawn(seed, *shape):
        return rows(count * math.prod(shape), seed).detach().unflatten(0, (count, *shape)).requires_grad_()

    def mask(values):
        second = torch.tensor(values, dtype=torch.bool)
        return torch.stack([second, second.roll(1)], 1)

    whole = {name: drawn(seed) for seed, name in enumerate(("image", "text", "short"))}
    local = ("region", "sentence", "patches", "tokens", "attended")
    return losses.Embeddings(
        **whole,
        **{name: drawn(seed, 2) for seed, name in enumerate(local, 3)},
        grid=drawn(8, 5),
        words=drawn(9, 4),
        is_word=torch.arange(4) < torch.tensor([1, 2, 3, 4, 3, 2])[:count, None],
        has_pair=mask(has_pair),
        in_view=mask(in_view),
        in_context=mask(in_context),
    )


WEIGHTS = {
    "global": 1.0,
    "local": 0.5,
    "tsl_image": 2.0,
    "tsl_text": 0.25,
    "short_caption": 0.3,
    "sentence_patches": 0.6,
    "late_interaction": 0.7,
}
MARGINS = {"hard_negative": 0.4, "local_hard_negative": 0.3}


@pytest.mark.parametrize("term", losses.TERMS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_mean_of_the_ranks_shares_is_the_term_of_the_whole_batch(term, ranks):
    """Also for ranks with different numbers of usable pairs; one rank has none."""
    whole = embeddings(6, [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1])
    weights = {term: WEIGHTS[term]} | MARGINS
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    inputs = [value for value in whole if value.is_floating_point()] + [scale]
    joined = losses.weighted(losses.terms(whole, scale, weights), weights)
    size = 6 // ranks
    shares = []
    for rank in range(ranks):
        own = losses.Embeddings(*(x[rank * size : (rank + 1) * size] for x in whole))
        shares.append(losses.weighted(losses.terms(own, scale, weights, whole, rank * size), weights))
    mean = sum(shares) / ranks
    torch.testing.assert_close(mean, joined, rtol=1e-12, atol=1e-12)
    one = torch.autograd.grad(mean, inputs, allow_unused=True)
    other = torch.autograd.grad(joined, inputs, allow_unused=True)
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_terms_with_weight_zero_are_not_computed():
    own = losses.Embeddings(rows(3, 0), rows(3, 1))
    values = losses.terms(own, torch.tensor(5.0, dtype=torch.float64), {"global": 1.0, "local": 0.0})
    assert list(values) == ["global"]


def test_global_and_local_pairs_never_mix():
    """In the released code, crops and sentences can be negatives of whole images and captions."""
    whole, local = torch.zeros(4, 8, dtype=torch.float64), torch.eye(4, 8, dtype=torch.float64)
    whole[:, 7] = 1
    everything = torch.ones(4, dtype=torch.bool)
    own = losses.Embeddings(
        whole, whole, local, local, local, local, None, everything, everything, everything
    )
    weights = {"global": 1.0, "local": 0.5, "tsl_image": 2.0, "tsl_text": 0.25}
    values = losses.terms(own, torch.tensor(9.0, dtype=torch.float64), weights)
    assert values["global"].item() == pytest.approx(math.log(4), rel=1e-12)
    # A whole image or caption among the local candidates would add a fourth negative.
    assert values["local"].item() == pytest.approx(math.log(1 + 3 * math.exp(-9.0)), rel=1e-9)
    assert values["tsl_image"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.skipif(not PARITY.exists(), reason="the parity cases are not beside this checkout")
def test_parity_with_an_independent_implementation():
    case = load_file(PARITY)
    image, text = case["image_embeds"], case["text_embeds"]
    scale = torch.tensor(math.exp(2.5889), dtype=torch.float32)
    everything = torch.ones(6, dtype=torch.bool)
    own = losses.Embeddings(
        image[:6], text[:6], image[6:], text[6:], case["pooled_patches"], case["pooled_tokens"], None,
        everything, everything, everything,
    )  # fmt: skip
    weights = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}
    values = losses.terms(own, scale, weights)
    ours = torch.stack([*values.values(), losses.weighted(values, weights)])
    torch.testing.assert_close(ours, case["losses"], rtol=1e-4, atol=1e-5)
