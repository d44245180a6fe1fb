"""GoalClip against open_clip: padded and trimmed texts; preprocessing."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip import factory
from open_clip.model import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from goal import clip
from goal.model import architectures
from goal.model.network import GoalClip, Spec
from goal.text import pad

SPEC = Spec(
    name="custom",
    image_size=32,
    patch_size=8,
    embed_dim=24,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=128,
    text_width=48,
    text_layers=3,
    text_heads=4,
    text_mlp=100,
    vocab_size=1000,
    context_length=60,
    quick_gelu=True,
)
LENGTHS = (12, 60, 3, 25, 8, 31)


@pytest.fixture(scope="module")
def model() -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(SPEC)


@pytest.fixture(scope="module")
def plain(model: GoalClip) -> CLIP:
    other = CLIP(**SPEC.config)
    other.load_state_dict(model.state_dict())
    return other


def images(count: int = len(LENGTHS)) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    end = torch.tensor([999])
    return [torch.cat([torch.randint(0, 998, (length - 1,), generator=draw), end]) for length in lengths]


def padded(length: int = SPEC.context_length) -> torch.Tensor:
    return torch.stack([F.pad(text, (0, length - len(text))) for text in texts()])


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def objective(pooled: torch.Tensor) -> torch.Tensor:
    return (pooled * torch.linspace(-1, 1, pooled.numel()).view_as(pooled)).sum()


@pytest.mark.parametrize(
    "name", ["ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"]
)
def test_the_state_dict_has_open_clips_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours = GoalClip(architectures.spec_of(name)).state_dict()
        theirs = CLIP(**factory.get_model_config(name)).state_dict()
    assert list(ours) == list(theirs)
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]


@torch.no_grad()
def test_embeddings_equal_open_clips(model: GoalClip, plain: CLIP) -> None:
    torch.testing.assert_close(model.encode_images(images()), plain.encode_image(images()), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_texts(padded()), plain.encode_text(padded()), atol=1e-5, rtol=0)
    unit = model.encode_texts(padded(), normalize=True)
    torch.testing.assert_close(unit, plain.encode_text(padded(), normalize=True), atol=1e-5, rtol=0)
    assert torch.equal(model.encode_image(images()), model.encode_images(images()))
    assert torch.equal(model.encode_text(padded()), model.encode_texts(padded()))


@torch.no_grad()
def test_tokens_are_those_before_the_final_norm(model: GoalClip, plain: CLIP) -> None:
    deep = plain.forward_intermediates(
        images(), padded(), image_indices=1, text_indices=1, image_output_fmt="NLC", normalize=False
    )
    seen, read = model.image_features(images()), model.text_features(padded())
    torch.testing.assert_close(seen.tokens, deep["image_intermediates"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read.tokens, deep["text_intermediates"][0], atol=1e-5, rtol=1e-5)
    assert seen.tokens.shape == (len(LENGTHS), 16, SPEC.vision_width)


@torch.no_grad()
def test_trimmed_texts_equal_padded_ones(model: GoalClip) -> None:
    one = texts()[0][None]
    torch.testing.assert_close(model.encode_texts(one), model.encode_texts(padded())[:1], atol=1e-5, rtol=0)


def test_trimmed_texts_have_the_gradient_of_padded_ones(model: GoalClip) -> None:
    trimmed = model.text_features(pad(texts()[2:3] + texts()[4:5]))
    whole = model.text_features(padded()[[2, 4]])
    ours, theirs = gradients(model, objective(trimmed.pooled)), gradients(model, objective(whole.pooled))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # As a norm: single values near 0 are rounding errors of the largest ones.
        assert (value - theirs[name]).norm() <= 1e-5 * theirs[name].norm() + 1e-5, name


@torch.no_grad()
def test_pooled_tokens_pass_the_models_own_norm_and_projection(model: GoalClip, plain: CLIP) -> None:
    tokens = torch.randn(4, SPEC.text_width), torch.randn(4, SPEC.vision_width)
    torch.testing.assert_close(
        model.project_tokens(tokens[0]), plain.ln_final(tokens[0]) @ plain.text_projection
    )
    torch.testing.assert_close(
        model.project_patches(tokens[1]), plain.visual.ln_post(tokens[1]) @ plain.visual.proj
    )


@torch.no_grad()
def test_a_forward_reads_several_batches_of_texts(model: GoalClip) -> None:
    seen, *read = model(images(), pad(texts()[:2]), pad(texts()[2:]))
    torch.testing.assert_close(seen.pooled, model.encode_images(images()))
    pooled = torch.cat([features.pooled for features in read])
    torch.testing.assert_close(pooled, model.encode_texts(padded()), atol=1e-5, rtol=0)


def test_texts_beyond_the_context_are_refused(model: GoalClip) -> None:
    with pytest.raises(ValueError, match="61 tokens do not fit the context of 60"):
        model.text_features(torch.ones(1, 61, dtype=torch.long))


def test_checkpointed_activations_give_the_same_gradient(model: GoalClip) -> None:
    def gradient() -> dict[str, torch.Tensor]:
        seen, read = model(images(), pad(texts()))
        return gradients(model, objective(seen.pooled) + objective(read.pooled))

    expected = gradient()
    model.set_grad_checkpointing(True)
    again = gradient()
    model.set_grad_checkpointing(False)
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_bf16_autocast_stays_close(model: GoalClip) -> None:
    with torch.no_grad():
        seen, read = model(images(), pad(texts()))
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images(), pad(texts()))
    for exact, approximate in zip((seen, read), rough, strict=True):
        cosines = F.cosine_similarity(exact.pooled, approximate.pooled.float())
        assert cosines.min() > 0.999


def test_the_forward_compiles_whole() -> None:
    # fullgraph: a graph break is an error. The eager backend needs no compiler on the machine.
    model = GoalClip(replace(SPEC, vision_layers=1, text_layers=1))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for lengths in (LENGTHS, LENGTHS[:3]):
            ids = pad(texts(lengths))
            for ours, expected in zip(compiled(images(), ids), model(images(), ids), strict=True):
                torch.testing.assert_close(ours.pooled, expected.pooled)


@pytest.fixture
def single_rank_group(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("single_rank_group")
def test_ddp_passes_several_texts_and_features(model: GoalClip) -> None:
    inner = copy.deepcopy(model)

    def loss(network: nn.Module) -> torch.Tensor:
        seen, read, more = network(images(), pad(texts()), pad(texts((5, 9))))
        # As in a training, the scale and the final norm are used outside the forward.
        pooled = inner.project_patches(seen.tokens.mean(1))
        parts = (seen.pooled, read.pooled, more.pooled, pooled)
        return inner.scale() * sum(map(objective, parts))

    expected = gradients(inner, loss(inner))
    again = gradients(inner, loss(nn.parallel.DistributedDataParallel(inner)))
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_the_scale_is_clamped_at_100_and_keeps_its_gradient(model: GoalClip) -> None:
    assert model.scale().item() == pytest.approx(1 / 0.07)
    trained = copy.deepcopy(model)
    # OpenAI's value, whose exponential is a little over 100, and a larger one.
    for value in (4.6052, 4.7):
        trained.logit_scale.data.fill_(value)
        assert trained.scale().item() == pytest.approx(100, abs=1e-4)
        assert gradients(trained, trained.scale())["logit_scale"] > 0


@pytest.mark.parametrize(
    "size", [(300, 200), (200, 301), (224, 224), (37, 111), (1, 1), (5, 900), (451, 449)]
)
@pytest.mark.parametrize("view", ["center_crop", "squash"])
def test_preprocessing_equals_open_clips(size: tuple[int, int], view: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    spec = replace(SPEC, view=view, image_size=64)
    settings = PreprocessCfg(64, resize_mode="squash" if view == "squash" else "shortest")
    theirs = image_transform_v2(settings, is_train=False)(Image.fromarray(pixels))
    assert torch.equal(clip.preprocess(spec)(Image.fromarray(pixels)), theirs)


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 30_000), (20_000, 2)])
def test_the_view_of_a_thin_picture_is_open_clips(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    spec = replace(SPEC, view="center_crop", image_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    settings = PreprocessCfg(64, resize_mode="shortest", mean=spec.mean, std=spec.std)
    theirs = image_transform_v2(settings, is_train=False)(Image.fromarray(pixels))
    # One step of 255, where a sum rounds differently.
    torch.testing.assert_close(
        clip.preprocess(spec)(Image.fromarray(pixels)), theirs, rtol=0, atol=1.01 / 255
    )


def test_views_as_bytes_give_the_same_features(model: GoalClip) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), np.uint8)
    prepare = clip.preprocess(replace(SPEC, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4)))
    pictures = [Image.fromarray(one) for one in pixels]
    views = torch.stack([prepare.view(one) for one in pictures])
    assert views.dtype == torch.uint8
    other = copy.deepcopy(model)
    other.spec = prepare.spec
    expected = model.image_features(torch.stack([prepare(one) for one in pictures]))
    for found, wanted in zip(other.image_features(views), expected, strict=True):
        assert torch.equal(found, wanted)
