"""Metrics against naive references, the parity case, and inputs that could inflate them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from goal import metrics

FIXTURES = Path(__file__).parent / "fixtures"


def cosines(first: Tensor, second: Tensor) -> np.ndarray:
    a, b = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (first, second))
    return (a @ b.T).numpy()


def naive_ranks(scores: np.ndarray, relevant: list[list[int]]) -> list[int]:
    """Rank of the best relevant item; wrong items with the same score rank before it."""
    ranks = []
    for row, items in zip(scores, relevant, strict=True):
        best = max(row[items], default=np.nan)
        wrong = [score for item, score in enumerate(row) if item not in items]
        ranks.append(0 if not items else 1 + sum(score >= best for score in wrong))
    return ranks


def naive_average_precision(scores: np.ndarray, relevant: list[list[int]], k: int) -> list[float]:
    """As in the release: sort everything and walk down the list."""
    result = []
    for row, items in zip(scores, relevant, strict=True):
        order = sorted(range(len(row)), key=lambda item, row=row, items=items: (-row[item], item in items))
        found, total = 0, 0.0
        for place, item in enumerate(order[:k], start=1):
            if item in items:
                found += 1
                total += found / place
        result.append(total / len(items))
    return result


def random_case(seed: int, pictures: int, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(pictures, 8, generator=draw)
    text_to_image = torch.randint(pictures, (texts,), generator=draw)
    text = image[text_to_image] + 1.2 * torch.randn(texts, 8, generator=draw)
    return image, text, text_to_image


def test_parity_with_an_independent_implementation() -> None:
    case = load_file(FIXTURES / "retrieval.safetensors")
    expected = json.loads((FIXTURES / "retrieval.json").read_text())
    image, text = case["image"], case["text"]
    ks = expected["recall_ks"]
    found = metrics.recall_at_k(image, text, torch.arange(400), ks)
    for way in ("image_to_text", "text_to_image"):
        assert [found[way][k] for k in ks] == pytest.approx(expected[way], abs=1e-4)
    relevant = [[q, (q + 200) % 400] for q in range(400)]
    assert metrics.map_at_k(image, text, relevant, 10) == pytest.approx(
        expected["joint_map10_image_to_text"], abs=1e-6
    )
    assert metrics.map_at_k(text, image, relevant, 10) == pytest.approx(
        expected["joint_map10_text_to_image"], abs=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_ranks_equal_the_naive_ones_with_several_texts_per_picture(seed: int, chunk: int) -> None:
    image, text, text_to_image = random_case(seed, pictures=23, texts=61)
    scores = cosines(image, text)
    texts_of = [torch.nonzero(text_to_image == i).flatten().tolist() for i in range(23)]
    found = metrics.ranks(image, text, text_to_image, chunk)
    assert found.image_to_text.tolist() == naive_ranks(scores, texts_of)
    assert found.text_to_image.tolist() == naive_ranks(scores.T, [[int(i)] for i in text_to_image])


def test_a_picture_without_text_is_a_distractor_but_no_query() -> None:
    image = torch.eye(3)
    found = metrics.ranks(image, image[:2], torch.tensor([0, 1]))
    assert found.image_to_text.tolist() == [1, 1, 0]
    assert metrics.recall(found.image_to_text, [1]) == {1: 100.0}


def test_raw_and_normalised_embeddings_give_the_same() -> None:
    image, text, text_to_image = random_case(5, pictures=40, texts=80)
    lengths = torch.linspace(0.01, 50, 40)[:, None]
    unit = torch.nn.functional.normalize
    raw = metrics.ranks(image * lengths, text, text_to_image)
    normalised = metrics.ranks(unit(image), unit(text), text_to_image)
    assert torch.equal(raw.image_to_text, normalised.image_to_text)
    assert torch.equal(raw.text_to_image, normalised.text_to_image)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("pictures", [2, 37, 130])
def test_constant_embeddings_find_nothing(value: float, pictures: int) -> None:
    draw = torch.Generator().manual_seed(1)
    same = torch.full((1, 37), value) * torch.randn(1, 37, generator=draw)
    image, text = same.repeat(pictures, 1), same.roll(1).repeat(pictures, 1)
    found = metrics.ranks(image, text, torch.arange(pictures), chunk=16)
    assert set(found.image_to_text.tolist()) == set(found.text_to_image.tolist()) == {pictures}
    relevant = [[q] for q in range(pictures)]
    assert metrics.map_at_k(image, text, relevant, 1) == 0
    twins = metrics.twins(image, text, image, text)
    assert not twins.image_to_text.any()
    assert not twins.text_to_image.any()


def test_two_pictures_with_the_same_text_tie_and_lower_each_others_rank() -> None:
    image = torch.eye(3)
    text = torch.stack([image[0] + image[1], image[0] + image[1], image[2]])
    found = metrics.ranks(image, text, torch.arange(3))
    assert found.image_to_text.tolist() == [2, 2, 1]
    assert found.text_to_image.tolist() == [2, 2, 1]


def test_tied_texts_of_one_picture_do_not_lower_its_rank() -> None:
    image = torch.eye(2)
    text = image[[0, 0, 0, 1]]
    found = metrics.ranks(image, text, torch.tensor([0, 0, 0, 1]))
    assert found.image_to_text.tolist() == [1, 1]


def test_recall_grows_with_k_and_reaches_all() -> None:
    image, text, text_to_image = random_case(2, pictures=30, texts=90)
    found = metrics.recall_at_k(image, text, text_to_image, [1, 5, 10, 90])
    for way in found.values():
        assert list(way.values()) == sorted(way.values())
        assert way[90] == 100.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [3, 1000])
def test_average_precision_equals_the_naive_one(seed: int, chunk: int) -> None:
    draw = np.random.default_rng(seed)
    query, gallery = (torch.from_numpy(draw.normal(size=(n, 4))) for n in (31, 45))
    gallery[40:] = gallery[:5]  # exact ties
    relevant = [draw.choice(45, size=draw.integers(1, 6), replace=False).tolist() for _ in range(31)]
    found = metrics.average_precision_at_k(query, gallery, relevant, 10, chunk)
    expected = naive_average_precision(cosines(query, gallery).round(12), relevant, 10)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_average_precision_by_hand() -> None:
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]])
    assert metrics.map_at_k(query, gallery, [[0, 2]], 10) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert metrics.map_at_k(query, gallery, [[0, 2]], 2) == pytest.approx((1 / 1) / 2)
    assert metrics.map_at_k(query, gallery, [[3]], 3) == 0


def test_twins_by_hand() -> None:
    image, twin = torch.eye(2)[:1], torch.eye(2)[1:]
    confused = torch.tensor([[0.9, 1.0]])
    found = metrics.twins(image, confused, twin, twin)
    # The picture scores its own text at 0.67 and the twin's at 0; its text prefers the twin's picture.
    assert found.image_to_text.tolist() == [[True, True]]
    assert found.text_to_image.tolist() == [[False, True]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(bad: float) -> None:
    image = torch.eye(3)
    image[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.ranks(image, torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.map_at_k(torch.eye(3), image, [[0], [1], [2]], 1)


def test_empty_inputs_and_unknown_items_are_refused() -> None:
    with pytest.raises(ValueError, match="are empty"):
        metrics.ranks(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="text_to_image"):
        metrics.ranks(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3]))
    for relevant in ([[0], []], [[0], [2]], [[0, 0], [1]], [[0]]):
        with pytest.raises(ValueError, match="relevant"):
            metrics.map_at_k(torch.eye(2), torch.eye(2), relevant, 1)
