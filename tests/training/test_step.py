"""One step against slow ways to the same numbers: towers one by one, pooling by loops, no chunks."""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from goal import losses, weights
from goal.model.network import GoalClip
from goal.model.packing import pack
from goal.training import step
from goal.training.batches import Batch, Collate
from goal.training.distributed import Group
from goal.training.examples import Examples, Key, Needs, Sample, read_pairs
from goal.training.step import embed
from tests import trainings
from tests.training.test_batches import BEST
from tests.trainings import SPEC

PARITY = Path(__file__).parents[2].parent / "shared" / "parity"
ALONE = Group(0, 1, torch.device("cpu"))
EVERYTHING = Needs(crops=True, sentences=True, short=True)
WEIGHTS = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("step")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return made(folder / "images")


def made(images: Path) -> Examples:
    """Seven pictures, their pairs in the current folder."""
    rows = trainings.rows(7, images)
    trainings.write_pairs(trainings.pairs(rows, {1, 4}))
    return Examples(rows, read_pairs(Path("pairs/train"), BEST), SPEC, EVERYTHING, 0, 200.0, 0.25)


def chunks(data: Examples, size: int, needs: Needs = EVERYTHING) -> list[Batch]:
    own = Examples(
        data.rows, dict(zip((r.id for r in data.rows), data._pairs, strict=True)), SPEC, needs, 0, 200.0, 0.25
    )
    return Collate(SPEC, size)([own[Key(0, index)] for index in range(7)]).chunks()


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
            assert bool(found.has_pair[row]) == (row not in {1, 4})
            if sample.crop is not None:
                crop, sentence = (
                    model.encode_images(sample.crop[None])[0],
                    model.encode_texts(sample.sentence[None])[0],
                )
                torch.testing.assert_close(found.region[row], crop, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(found.sentence[row], sentence, rtol=1e-4, atol=1e-5)
            assert bool(found.in_view[row]) == (sample.patches is not None)
            if sample.patches is not None:
                lit = [whole.tokens[0, n] for n, touched in enumerate(sample.patches.tolist()) if touched]
                expected = model.project_patches(torch.stack(lit).mean(0)[None])[0]
                torch.testing.assert_close(found.patches[row], expected, rtol=1e-4, atol=1e-5)
            assert bool(found.in_context[row]) == (sample.span is not None)
            if sample.span is not None:
                own = [caption.tokens[0, n] for n in range(*sample.span)]
                expected = model.project_tokens(torch.stack(own).mean(0)[None])[0]
                torch.testing.assert_close(found.tokens[row], expected, rtol=1e-4, atol=1e-5)


def test_towers_run_once_a_step(data: Examples) -> None:
    """Fault 7 of METHOD section 9: wholes and crops in one call, all texts in one, with little padding."""
    model = trainings.model()
    calls: dict[str, list[tuple[int, ...]]] = {"image": [], "text": []}
    model.visual.transformer.register_forward_pre_hook(
        lambda _, args: calls["image"].append(tuple(args[0].shape))
    )
    model.transformer.register_forward_pre_hook(lambda _, args: calls["text"].append(tuple(args[0].shape)))
    batch = chunks(data, 0)
    step.backward(model, batch, WEIGHTS | {"short_caption": 0.5}, ALONE, nullcontext)
    assert calls["image"] == [(7 + 5, 17, 24)]
    ((rows, length, width),) = calls["text"]
    samples = [data[Key(0, index)] for index in range(7)]
    texts = [
        one
        for sample in samples
        for one in (sample.caption, sample.sentence, sample.short)
        if one is not None
    ]
    tokens = sum(map(len, texts))
    assert len(texts) == 7 + 5 + 7
    assert width == 24
    assert tokens <= rows * length < 1.25 * tokens


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "weights_",
    [
        WEIGHTS,
        {"global": 1.0, "hard_negative": 0.5, "short_caption": 0.5},
        {"local": 1.0},
        {"tsl_image": 1.0},
    ],
)
def test_chunks_give_the_gradient_of_the_whole_batch(
    data: Examples, size: int, weights_: dict[str, float]
) -> None:
    model = trainings.model()
    model.logit_scale.data.fill_(math.log(14.0))
    needs = Needs.of(weights_)
    whole = step.backward(model, chunks(data, 0, needs), weights_, ALONE, nullcontext)
    expected = gradients(model)
    parts = step.backward(model, chunks(data, size, needs), weights_, ALONE, nullcontext)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


class Kept:
    """A tensor that waits for the backward pass, counted while it lives."""

    now = most = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        Kept.now += tensor.nbytes
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.tensor.nbytes


def drawn(count: int) -> list[Sample]:
    """Random pairs, one in eight without a usable region and sentence."""
    draw = torch.Generator().manual_seed(3)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    def view() -> torch.Tensor:
        return torch.randint(256, (3, 32, 32), generator=draw, dtype=torch.uint8)

    def text(length: int) -> torch.Tensor:
        words = torch.randint(1, 49406, (length - 2,), generator=draw)
        return torch.tensor([49406, *words.tolist(), 49407])

    samples = []
    for place in range(count):
        caption, start = text(number(12, 41)), number(1, 6)
        pair = (view(), text(number(4, 12)), torch.rand(16, generator=draw) < 0.3, (start, start + 4))
        samples.append(Sample(view(), caption, *(pair if place % 8 else (None,) * 4), None))
    return samples


def test_a_batch_of_512_in_chunks_has_the_gradient_of_the_whole_in_a_chunks_memory() -> None:
    """The words of the task: a batch of 512 fits a small GPU and gives the gradient to 1e-5."""
    model, samples = trainings.model(), drawn(512)
    found, most = {}, {}
    for size in (0, 32, 100):
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            step.backward(model, Collate(SPEC, size)(samples).chunks(), WEIGHTS, ALONE, nullcontext)
        found[size], most[size] = gradients(model), Kept.most
    for size in (32, 100):
        for name, value in found[0].items():
            assert (found[size][name] - value).norm() <= 1e-5 * value.norm(), (size, name)
    assert most[32] < most[100] < most[0] / 4
    assert most[32] < most[0] / 12


def _compiled(folder: str) -> None:
    os.chdir(folder)
    passes: list[bool] = []

    def backend(graph: Callable, inputs: object) -> Callable:
        def run(*values: torch.Tensor) -> object:
            passes.append(torch.is_grad_enabled())
            return graph(*values)

        return run

    parts = chunks(made(Path("images")), 3)
    plain, model = trainings.model(), trainings.model()
    expected = step.backward(plain, parts, WEIGHTS, ALONE, nullcontext)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    found = step.backward(compiled, parts, WEIGHTS, ALONE, nullcontext)
    # Three chunks, each once without a gradient and once with, in one graph.
    assert passes == [False] * 3 + [True] * 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_both_passes_of_a_chunked_step_are_compiled(tmp_path: Path) -> None:
    # In a process of its own: what checks shapes in tests breaks graphs.
    child = trainings.forks().Process(target=_compiled, args=(str(tmp_path),))
    child.start()
    child.join(240)
    assert child.exitcode == 0


def test_whole_and_crop_never_mix(data: Examples) -> None:
    """Fault 5 of METHOD section 9: a marked crop moves its own pair's region, nothing else; so do texts."""
    model = trainings.model().eval()
    (batch,) = chunks(data, 0)
    with torch.no_grad():
        plain = embed(model, batch, EVERYTHING, nullcontext)
        marked = batch.images.clone()
        marked[7 + 2] = 255 - marked[7 + 2]
        crop = embed(model, batch._replace(images=marked), EVERYTHING, nullcontext)
        ids = batch.texts.ids.clone()
        sentence = 7 + 2
        ids[batch.texts.rows[sentence], batch.texts.starts[sentence] + 1] = 555
        text = embed(model, batch._replace(texts=batch.texts._replace(ids=ids)), EVERYTHING, nullcontext)
    own = int(batch.rows[2])
    for found, field in ((crop, "region"), (text, "sentence")):
        for name in step.TENSORS:
            moved = (getattr(found, name) - getattr(plain, name)).abs().amax(1) > 1e-4
            assert moved.tolist() == [name == field and row == own for row in range(7)], name


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


def test_every_parameter_has_a_gradient_whatever_the_terms(data: Examples) -> None:
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
def test_a_whole_step_equals_independent_numbers(size: int) -> None:
    case = load_file(PARITY / "goal_step.safetensors")
    model = _parity_model().eval()
    masks = []
    for box in case["boxes"]:
        x1, y1, x2, y2 = box.tolist()
        grid = torch.zeros(4, 4, dtype=torch.bool)
        grid[int(y1 // 16) : math.ceil(y2 / 16), int(x1 // 16) : math.ceil(x2 / 16)] = True
        masks.append(grid.flatten())
    yes = torch.ones(6, dtype=torch.bool)
    texts = [ids[: int(ids.argmax()) + 1] for ids in (*case["global_ids"], *case["local_ids"])]
    parts = []
    for first in range(0, 6, size or 6):
        rows = list(range(first, min(first + (size or 6), 6)))
        parts.append(
            Batch(
                images=torch.cat([case["global_images"][rows], case["local_images"][rows]]),
                texts=pack([texts[row] for row in rows] + [texts[6 + row] for row in rows]),
                rows=torch.arange(len(rows)),
                patches=torch.stack([masks[row] for row in rows]),
                spans=case["spans"][rows],
                has_pair=yes[rows],
                in_view=yes[rows],
                in_context=yes[rows],
            )
        )
    values = step.backward(model, parts, WEIGHTS, ALONE, nullcontext)
    ours = torch.stack([*values.values(), losses.weighted(values, WEIGHTS)])
    torch.testing.assert_close(ours, case["losses"], rtol=1e-4, atol=1e-5)
