"""What `goal export` writes, loaded by the libraries that it is for."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import ftfy
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from goal import clip, exports, text, weights
from goal.datasets import images
from goal.errors import UserError
from goal.exports import onnx_files
from goal.stages import evaluate
from tests import tiny
from tests.text.test_text import CAPTION_FILES, shared

MODEL = Path("models/base")
# What CLIP's cleaning changes: curly quotes, entities, escaped twice, broken encodings, ligatures.
MESSY = (
    "A “curly” dog’s toy.",
    "Salt &amp; pepper &lt;b&gt;",
    "&amp;amp; twice",
    "It\u00e2\u20ac\u2122s broken.",
    "ﬁne ligature",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny.make(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX export of a random network."""
    root = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        tiny.make(root, patch)
        exports.run(MODEL, root / "out", "onnx")
    return root


def embeddings(file: Path, name: str, inputs: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["embeddings"], {name: inputs.numpy()})[0]


@pytest.mark.parametrize("batch", [1, 7])
def test_onnx_equals_the_network_for_any_batch(written: Path, batch: int) -> None:
    model = weights.load(written / MODEL).eval()
    views = torch.randn(batch, 3, 32, 32)
    captions = [tiny.CAPTIONS[number % len(tiny.CAPTIONS)] for number in range(batch)]
    ids = torch.zeros(batch, model.spec.context_length, dtype=torch.long)
    for row, caption in zip(ids, captions, strict=True):
        tokens = text.tokenize(caption, [], model.spec.context_length).ids
        row[: len(tokens)] = tokens
    with torch.inference_mode():
        image, words = model.encode_images(views, normalize=True), model.encode_texts(ids, normalize=True)
    assert np.abs(embeddings(written / "out/images.onnx", "views", views) - image.numpy()).max() < 1e-4
    assert np.abs(embeddings(written / "out/texts.onnx", "ids", ids) - words.numpy()).max() < 1e-4
    prepared = json.loads((written / "out/preprocessor_config.json").read_text())
    assert (prepared["crop_size"], prepared["image_mean"]) == (
        {"height": 32, "width": 32},
        list(model.spec.mean),
    )


def by_the_card(texts: list[str], pictures: list | None) -> dict:
    """The variables after the code in the model card of the folder `out`."""
    (code,) = re.findall("```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    names = {"texts": texts, "pictures": pictures, "ftfy": ftfy, "html": html}
    names |= {"CLIPModel": CLIPModel, "CLIPProcessor": CLIPProcessor}
    exec(code.replace("<this folder>", "out"), names)
    return names


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True, "view": "squash"}], ids=str)
def test_transformers_reads_the_same_model_without_a_network(
    project: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    """Tokens, views and embeddings, from the folder alone; long texts are cut at the same token."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights.save(weights.GoalClip(replace(tiny.SPEC, **changes)), MODEL)
    exports.run(MODEL, Path("out"), "transformers")
    theirs = CLIPModel.from_pretrained("out").eval()
    ours = weights.load(MODEL).eval()
    texts = [*tiny.CAPTIONS, "Café, naïve: 'so' it's 4.5 m; U.S. 12,345\n日本 ❤️", "", *MESSY]
    pictures = [images.open_image(f"data/tiny/images/{number}.png", 200) for number in range(4)]
    inputs = by_the_card(texts, pictures)["inputs"]
    ids = [text.tokenize(one, [], ours.spec.context_length).ids for one in texts]
    for own, row, mask in zip(ids, inputs["input_ids"], inputs["attention_mask"], strict=True):
        assert torch.equal(row[mask.bool()], own)
    views = torch.stack([clip.preprocess(ours.spec)(picture) for picture in pictures])
    torch.testing.assert_close(inputs["pixel_values"], views, atol=1e-5, rtol=0)
    with torch.inference_mode():
        found = theirs(**inputs | {"pixel_values": views})
        image = ours.encode_images(views, normalize=True)
        words = torch.cat([ours.encode_texts(one[None], normalize=True) for one in ids])
    torch.testing.assert_close(found.image_embeds, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.text_embeds, words, atol=1e-5, rtol=0)


def test_real_captions_get_the_same_tokens_once_cleaned(project: Path) -> None:
    """The counts in docs/weights.md."""
    captions = [row["caption"] for name in CAPTION_FILES for row in shared(f"captions/{name}")]
    exports.run(MODEL, Path("out"), "transformers")
    tokenizer = CLIPTokenizer.from_pretrained("out")
    ours = [text.tokenize(one, [], None).ids.tolist() for one in captions]

    def differing(texts: list[str]) -> int:
        return sum(tokenizer(one)["input_ids"] != ids for one, ids in zip(texts, ours, strict=True))

    assert (len(captions), differing(captions), differing(by_the_card(captions, None)["texts"])) == (
        9098,
        39,
        0,
    )


def test_an_onnx_file_that_differs_is_not_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"images.onnx: not written: its embeddings differ .* by"):
        exports.run(MODEL, Path("out"), "onnx")
    assert [path.name for path in Path("out").iterdir()] == ["preprocessor_config.json"]


def test_the_card_says_what_was_measured_on_these_weights(project: Path) -> None:
    evaluate.run(tiny.params(), ["zero-shot"])
    exports.run(MODEL, Path("out"), "open_clip")
    card = Path("out/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "open_clip"
    measured = json.loads(Path("metrics/zero-shot/details/test.json").read_text())["metrics"]
    found = re.search(r"\| tiny/test \| 6 / 12 \| text_to_image_r1 \| ([\d.]+) \| ([\d.]+) to", body)
    expected = measured["text_to_image_r1"]
    assert (float(found[1]), float(found[2])) == pytest.approx((expected["mean"], expected["low"]), abs=0.006)
    assert f"| sha256 of the weights | {weights.digest(MODEL)} |" in body
    for heading in ("Use", "Intended use", "Limits", "Data and licence", "Metrics", "Lineage"):
        assert f"## {heading}\n" in body


def test_the_card_of_other_weights_claims_nothing(project: Path) -> None:
    evaluate.run(tiny.params(), ["zero-shot"])
    torch.manual_seed(7)
    weights.save(weights.GoalClip(tiny.SPEC), Path("other"))
    exports.run(Path("other"), Path("out"), "transformers")
    card = Path("out/README.md").read_text()
    assert "None: no evaluation of these weights" in card
    assert "Training data: not known here" in card


def exported(card: dict) -> tuple[str, str]:
    """The licence in the front matter of an export's card, and the card."""
    weights.publish(weights.load(MODEL), Path("models/stage2"), card)
    exports.run(Path("models/stage2"), Path("out"), "open_clip")
    text = Path("out/README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1])["license"], text


def test_the_card_names_the_data_and_its_licence(project: Path) -> None:
    made = {"name": "stage2", "data": "photos", "source": "docci", "pretrained": "openai", "seed": 3}
    parent = {"path": "models/stage1", "sha256": "abc"}
    licence, text = exported(made | {"parents": [parent], "params": {"stage2": {"lr": 1e-5}}})
    assert licence == "other"
    assert "Training data: photos, CC BY 4.0, pictures and descriptions: name the authors" in text
    assert "Fine-tuned on photos by `goal train stage2`." in text
    assert "Pretrained weights: openai, under their own licence." in text
    assert "| made from | models/stage1, sha256 abc |" in text
    assert "| parameters | stage2.lr 1e-05 |" in text


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"name": "zero-shot", "pretrained": "embedded"}, "apache-2.0"),
        ({"name": "stage2", "pretrained": "embedded", "data": "any", "source": "scenes"}, "apache-2.0"),
        # The name of a data set proves nothing: these are a user's own pictures.
        ({"name": "stage2", "pretrained": "embedded", "data": "scenes", "source": "folder"}, "other"),
        ({"name": "stage2", "pretrained": "embedded", "data": "docci", "source": "folder"}, "other"),
        # Weights of unknown origin, and an old card that does not name them.
        ({"name": "stage2", "pretrained": "tuned.pt", "data": "scenes", "source": "scenes"}, "other"),
        ({"name": "stage2", "data": "scenes"}, "other"),
    ],
)
def test_only_what_the_project_made_is_apache_licensed(project: Path, card: dict, licence: str) -> None:
    found, text = exported(card)
    assert found == licence
    assert "CC BY" not in text


def test_a_card_json_of_other_weights_is_ignored(project: Path) -> None:
    exported({"name": "zero-shot", "pretrained": "embedded"})
    torch.manual_seed(7)
    weights.save(weights.GoalClip(tiny.SPEC), Path("models/stage2"))
    exports.run(Path("models/stage2"), Path("again"), "open_clip")
    text = Path("again/README.md").read_text()
    assert "license: other" in text
    assert "Training data: not known here" in text


def test_a_folder_that_is_not_empty_is_left_alone(project: Path) -> None:
    readme = project / "mine" / "README.md"
    readme.parent.mkdir()
    readme.write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        exports.run(MODEL, readme.parent, "open_clip")
    assert readme.read_text() == "mine"
