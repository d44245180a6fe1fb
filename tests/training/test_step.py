"""One step against slow references: one image or text at a time, pooling by loops, no chunks."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from goal import losses, weights
from goal.model.network import GoalClip
from goal.text import pad
from goal.training import step
from goal.training.batches import Batch, Collate
from goal.training.distributed import Group
from goal.training.examples import Examples, Key, LocalPair, Needs, read_pairs
from goal.training.step import embed
from tests import trainings
from tests.training.test_batches import BEST
from tests.trainings import SPEC

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
ALONE = Group(0, 1, torch.device("cpu"))
EVERYTHING = Needs(crops=True, sentences=True, short=True, attention=0.2, tokens=True)
WEIGHTS = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("step")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return made(folder / "images")


def made(images: Path) -> Examples:
    """Seven pictures, two of them without usable pairs, which are written to the current folder."""
    rows = trainings.rows(7, images)
    trainings.write_pairs(trainings.pairs(rows, {1, 4}))
    pairs = read_pairs(Path("pairs/train"), BEST.model_copy(update={"per_step": 2}))
    return Examples(rows, pairs, SPEC, EVERYTHING, 0, 200.0, 0.25, per_step=2)


def chunks(data: Examples, size: int, needs: Needs = EVERYTHING) -> list[Batch]:
    pairs = dict(zip((row.id for row in data.rows), data._pairs, strict=True))
    own = Examples(data.rows, pairs, SPEC, needs, 0, 200.0, 0.25, per_step=2)
    return Collate(SPEC, size, 2)([own[Key(0, index)] for index in range(7)]).chunks()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def test_embeddings_equal_the_towers_one_by_one(data: Examples) -> None:
    model = trainings.model().eval()
    (batch,) = chunks(data, 0)
    with torch.no_grad():
        found = embed(model, batch, EVERYTHING, nullcontext)
        for row in range(7):
            sample = data[Key(0, row)]
            whole, caption = (
                model.image_features(sample.whole[None]),
                model.text_features(sample.caption[None]),
            )
            torch.testing.assert_close(found.image[row], whole.pooled[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.text[row], caption.pooled[0], rtol=1e-4, atol=1e-5)
            short = model.encode_texts(sample.short[None])[0]
            torch.testing.assert_close(found.short[row], short, rtol=1e-4, atol=1e-5)
            grid = model.project_patches(whole.tokens[0])
            torch.testing.assert_close(found.grid[row], grid, rtol=1e-4, atol=1e-5)
            count = len(sample.caption)
            assert found.is_word[row].nonzero().flatten().tolist() == list(range(1, count - 1))
            words = model.project_tokens(caption.tokens[0])
            torch.testing.assert_close(found.words[row, :count], words, rtol=1e-4, atol=1e-5)
            assert len(sample.pairs) == (0 if row in {1, 4} else 2)
            for place in range(2):
                pair = sample.pairs[place] if sample.pairs else LocalPair(None, None, None, None)
                assert bool(found.has_pair[row, place]) == bool(sample.pairs)
                assert bool(found.in_view[row, place]) == (pair.patches is not None)
                assert bool(found.in_context[row, place]) == (pair.span is not None)
                expected = {}
                if sample.pairs:
                    expected["region"] = model.encode_images(pair.crop[None])[0]
                    expected["sentence"] = sentence = model.encode_texts(pair.sentence[None])[0]
                    cosines = [torch.cosine_similarity(sentence, patch, 0) for patch in grid]
                    share = (torch.stack(cosines) / EVERYTHING.attention).softmax(0)
                    expected["attended"] = sum(part * patch for part, patch in zip(share, grid, strict=True))
                if pair.patches is not None:
                    lit = [whole.tokens[0, n] for n, touched in enumerate(pair.patches.tolist()) if touched]
                    expected["patches"] = model.project_patches(torch.stack(lit).mean(0)[None])[0]
                if pair.span is not None:
                    own = [caption.tokens[0, n] for n in range(*pair.span)]
                    expected["tokens"] = model.project_tokens(torch.stack(own).mean(0)[None])[0]
                for name, value in expected.items():
                    torch.testing.assert_close(getattr(found, name)[row, place], value, rtol=1e-4, atol=1e-5)


def test_every_image_and_text_passes_its_tower_once_per_step(data: Examples) -> None:
    """Unlike the released code: all images in one call, texts with others of their length."""
    model = trainings.model()
    calls: dict[str, list[tuple[int, ...]]] = {"image": [], "text": []}
    model.visual.transformer.register_forward_pre_hook(
        lambda _, args: calls["image"].append(tuple(args[0].shape))
    )
    model.transformer.register_forward_pre_hook(lambda _, args: calls["text"].append(tuple(args[0].shape)))
    batch = chunks(data, 0)
    step.backward(model, batch, WEIGHTS | {"short_caption": 0.5}, ALONE, nullcontext)
    assert calls["image"] == [(7 + 10, 17, 24)]
    samples = [data[Key(0, index)] for index in range(7)]
    texts = [text for sample in samples for text in (sample.caption, sample.short)]
    texts += [pair.sentence for sample in samples for pair in sample.pairs]
    lengths = sorted(len(text) for text in texts)
    assert len(lengths) == 7 + 10 + 7
    assert calls["text"] == [(4, lengths[last], 24) for last in (3, 7, 11, 15, 19, 23)]


def test_global_and_local_pairs_never_mix(data: Examples) -> None:
    """A changed crop changes only its own region embedding, a changed sentence only its own embedding."""
    model = trainings.model().eval()
    (batch,) = chunks(data, 0)
    with torch.no_grad():
        plain = embed(model, batch, EVERYTHING, nullcontext)
        marked = batch.images.clone()
        marked[7 + 2] = 255 - marked[7 + 2]
        crop = embed(model, batch._replace(images=marked), EVERYTHING, nullcontext)
        group, row = divmod(int(batch.places[7 + 2]), 4)
        batch.texts[group][row, 1] = 555
        text = embed(model, batch, EVERYTHING, nullcontext)
    own = int(batch.rows[2]) // 2
    for found, field in ((crop, "region"), (text, "sentence")):
        for name in step.TENSORS:
            moved = (getattr(found, name) - getattr(plain, name)).abs().flatten(1).amax(1) > 1e-4
            fields = {field, "attended"} if field == "sentence" else {field}
            assert moved.tolist() == [name in fields and row == own for row in range(7)], name


@pytest.mark.parametrize("size", [0, 3])
def test_the_norm_of_each_term_s_gradient_at_the_embeddings(data: Examples, size: int) -> None:
    """The embeddings are leaves here: each term alone with its weight, in whole batches and in chunks."""
    model, norms = trainings.model(), {}
    step.backward(model, chunks(data, size), WEIGHTS, ALONE, nullcontext, norms)
    (batch,) = chunks(data, 0)
    with torch.no_grad():
        own = embed(model, batch, Needs.of(WEIGHTS), nullcontext)
        scale = model.scale()
    assert list(norms) == list(WEIGHTS)
    for term, weight in WEIGHTS.items():
        leaves = {
            name: value.clone().requires_grad_()
            for name in step.TENSORS
            if (value := getattr(own, name)) is not None
        }
        (weight * losses.terms(own._replace(**leaves), scale, {term: 1.0})[term]).backward()
        total = sum(leaf.grad.square().sum() for leaf in leaves.values() if leaf.grad is not None)
        assert norms[term].item() == pytest.approx(total.sqrt().item(), rel=1e-4)


def test_bf16_arithmetic_keeps_fp32_weights_and_gradients(data: Examples) -> None:
    model = trainings.model()
    values = step.backward(
        model, chunks(data, 0), WEIGHTS, ALONE, lambda: torch.autocast("cpu", torch.bfloat16)
    )
    exact = trainings.model()
    reference = step.backward(exact, chunks(data, 0), WEIGHTS, ALONE, nullcontext)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert {value.grad.dtype for value in model.parameters()} == {torch.float32}
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference[name].item(), rel=0.05, abs=0.02)
        assert value.item() != reference[name].item()


def test_every_parameter_has_a_gradient_for_any_loss_terms(data: Examples) -> None:
    for weights_ in ({"tsl_image": 1.0}, {"local": 1.0}, {"global": 1.0}):
        model = trainings.model()
        step.backward(model, chunks(data, 0, Needs.of(weights_)), weights_, ALONE, nullcontext)
        assert all(value.grad is not None for value in model.parameters())


def _parity_model() -> GoalClip:
    return weights.from_huggingface(
        load_file(PARITY / "hf_clip_tiny.safetensors"), heads=(2, 2), quick_gelu=True
    )


@pytest.mark.skipif(not PARITY.exists(), reason="the parity cases are not beside this checkout")
@pytest.mark.parametrize("size", [0, 4])
def test_a_whole_step_equals_an_independent_implementation(size: int) -> None:
    case = load_file(PARITY / "goal_step.safetensors")
    model = _parity_model().eval()
    masks = []
    for box in case["boxes"]:
        x1, y1, x2, y2 = box.tolist()
        grid = torch.zeros(4, 4, dtype=torch.bool)
        grid[int(y1 // 16) : math.ceil(y2 / 16), int(x1 // 16) : math.ceil(x2 / 16)] = True
        masks.append(grid.flatten())
    yes = torch.ones(6, 1, dtype=torch.bool)
    texts = [ids[: int(ids.argmax()) + 1] for ids in (*case["global_ids"], *case["local_ids"])]
    parts = []
    for first in range(0, 6, size or 6):
        rows = list(range(first, min(first + (size or 6), 6)))
        parts.append(
            Batch(
                images=torch.cat([case["global_images"][rows], case["local_images"][rows]]),
                texts=[pad([texts[row] for row in rows]), pad([texts[6 + row] for row in rows])],
                places=torch.arange(2 * len(rows)),
                rows=torch.arange(len(rows)),
                patches=torch.stack([masks[row] for row in rows])[:, None],
                spans=case["spans"][rows][:, None],
                has_pair=yes[rows],
                in_view=yes[rows],
                in_context=yes[rows],
            )
        )
    values = step.backward(model, parts, WEIGHTS, ALONE, nullcontext)
    ours = torch.stack([*values.values(), losses.weighted(values, WEIGHTS)])
    torch.testing.assert_close(ours, case["losses"], rtol=1e-4, atol=1e-5)
