"""The embedded CLIP: trained from a seed, stored in half precision, restored when loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from goal import clip, metrics, text
from goal.datasets import scenes_layout, scenes_render, scenes_words
from goal.errors import UserError
from goal.model import embedded
from goal.runtime import tensorfiles
from goal.training import pretrain

GALLERY = 200
TINY = pretrain.Recipe(scenes=12, steps=3, wholes=3, close_ups=4, warmup_steps=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "tiny.safetensors"
    pretrain.run(TINY, path)
    return path


def test_the_stored_network_is_loaded_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pretrain.fresh(seed=3)
    trained = torch.zeros(model.spec.vocab_size, dtype=torch.bool)
    trained[[5, 49406]] = True
    with torch.no_grad():
        model.token_embedding.weight[trained] = 0.5
    embedded.save(model, 3, trained, tmp_path / "x.safetensors")
    found = embedded.load(tmp_path / "x.safetensors")
    assert found.spec == model.spec
    table = found.token_embedding.weight
    assert torch.equal(table, model.token_embedding.weight)
    for name, value in model.state_dict().items():
        if name != embedded.TABLE:
            assert torch.equal(found.state_dict()[name], value.half().float()), name


def test_saving_refuses_a_changed_row_that_would_not_be_stored(tmp_path: Path) -> None:
    model = pretrain.fresh(seed=0)
    with torch.no_grad():
        model.token_embedding.weight[7] += 1
    with pytest.raises(ValueError, match="no caption used"):
        embedded.save(
            model, 0, torch.zeros(model.spec.vocab_size, dtype=torch.bool), tmp_path / "x.safetensors"
        )
    assert list(tmp_path.iterdir()) == []


def test_the_random_token_table_never_changes() -> None:
    """The shipped weights depend on these numbers, which were recorded once."""
    table = embedded.fresh_table(pretrain.fresh(0).spec, seed=0)
    assert table[0, :3].tolist() == pytest.approx([0.0352810, 0.0080031, 0.0195748], abs=1e-6)
    assert float(table.double().sum()) == pytest.approx(39.41922, abs=1e-3)


def test_training_changes_only_used_rows_and_is_reproducible(made: Path, tmp_path: Path) -> None:
    model = embedded.load(made)
    fresh = embedded.fresh_table(model.spec, TINY.seed)
    moved = (model.token_embedding.weight != fresh).any(1)
    stored, _ = tensorfiles.read(made)
    assert moved.nonzero()[:, 0].tolist() == stored["token_embedding.numbers"].tolist()
    assert 10 < int(moved.sum()) < 200
    pretrain.run(TINY, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == made.read_bytes()


def test_another_file_is_a_user_error(tmp_path: Path) -> None:
    tensorfiles.write(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(UserError, match=r"x.safetensors: not written by `goal pretrain-scenes`"):
        embedded.load(tmp_path / "x.safetensors")


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    recipe = pretrain.Recipe()
    rates = [pretrain.learning_rate(step, recipe) for step in range(recipe.steps)]
    assert rates[: recipe.warmup_steps] == sorted(rates[: recipe.warmup_steps])
    assert max(rates) == recipe.lr
    assert rates[-1] < recipe.lr / 1000


def test_close_ups_show_their_object() -> None:
    for view in pretrain.draw(TINY, side=64):
        thing = view.scene.things[view.thing]
        paint = np.array(scenes_render.PAINT[thing.colour])
        near, far = (
            (np.abs(one.astype(int) - paint).max(-1) < 60).mean() for one in (view.close_up, view.whole)
        )
        assert view.close_up.shape == view.whole.shape == (64, 64, 3)
        assert near > far


def test_no_pretraining_scene_is_in_the_data_set() -> None:
    def drawn(split: str) -> set[scenes_layout.Scene]:
        streams = (scenes_layout.stream(0, split, index, "layout") for index in range(300))
        return {scenes_layout.draw(stream, 3, 6) for stream in streams}

    assert not drawn("pretrain") & (drawn("train") | drawn("val") | drawn("test"))


def test_the_shipped_weights_are_as_good_as_documented() -> None:
    """Trained on short captions; on long ones far above chance, with room for fine-tuning."""
    model = clip.load("scenes-vit", pretrained="embedded").eval()
    assert model.spec.context_length == 248
    prepare = clip.preprocess(model.spec)
    pictures, long, short = [], [], []
    for index in range(GALLERY):
        scene = scenes_layout.scene_of(9, "test", index, 3, 6)
        pictures.append(prepare(Image.fromarray(scenes_render.render(scene, 128)[0])))
        long.append(scenes_words.long_caption(scene, scenes_layout.stream(9, "test", index, "words"))[0])
        short.append(scenes_words.short_caption(scene, scenes_layout.stream(9, "test", index, "short")))
    with torch.inference_mode():
        image = model.encode_images(torch.stack(pictures))
        texts = {
            name: model.encode_texts(text.pad([text.tokenize(one, [], 248).ids for one in captions]))
            for name, captions in (("long", long), ("short", short))
        }
    own = torch.arange(GALLERY)
    recall = {name: metrics.recall_at_k(image, value, own, [1, 5]) for name, value in texts.items()}
    assert 15 < recall["long"]["text_to_image"][1] < 60
    assert 15 < recall["long"]["image_to_text"][1] < 60
    assert recall["short"]["text_to_image"][1] > 15


def test_close_ups_get_their_names() -> None:
    """Each of 72 names of colour and shape is a caption; chance is 1.4 %."""
    model = clip.load("scenes-vit", pretrained="embedded").eval()
    recipe = pretrain.Recipe(scenes=0)
    views = [pretrain.view(recipe, model.spec.image_size, 50_000 + index) for index in range(200)]
    names = [f"{colour} {shape}" for colour in scenes_layout.COLOURS for shape in scenes_layout.SHAPES]
    ids = [text.tokenize(scenes_words.article(name), [], 77).ids for name in names]
    pixels = torch.from_numpy(np.stack([view.close_up for view in views])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        images = model.encode_images(pixels, normalize=True)
        found = (images @ model.encode_texts(text.pad(ids), normalize=True).T).argmax(1)
    right = [
        names[name] == view.scene.things[view.thing].name for name, view in zip(found, views, strict=True)
    ]
    assert sum(right) >= 0.95 * len(views)


def test_equal_captions_match_each_other_s_images() -> None:
    """Against loops: each image's target is shared among the captions that are equal to its own."""
    images, texts = torch.nn.functional.normalize(
        torch.randn(2, 5, 8, generator=torch.manual_seed(0)), dim=-1
    )
    captions = ["a", "b", "a", "c", "a"]
    texts = texts[[captions.index(caption) for caption in captions]]
    ours = pretrain.same_captions_match(images, texts, captions, torch.tensor(7.0))
    total = 0.0
    for one, others in ((images, texts), (texts, images)):
        for row, caption in enumerate(captions):
            logs = (7.0 * others @ one[row]).log_softmax(0)
            same = [place for place, other in enumerate(captions) if other == caption]
            total -= sum(logs[place] for place in same) / len(same)
    torch.testing.assert_close(ours, total / 10)
