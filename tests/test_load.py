"""Loading a network by name: activation, context length, download; and the base stage."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from open_clip import pretrained
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file

from goal import clip, config, positions, weights
from goal.config import paths
from goal.errors import Unavailable, UserError
from goal.model import architectures
from goal.stages import base
from tests import networks
from tests.networks import equal, tiny
from tests.tiny import ROOT

IDS = torch.tensor([[49406, 320, 1125, 49407, 0, 0]])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    return networks.register(monkeypatch)


@pytest.mark.parametrize(
    ("name", "tag", "quick"), [("openai", True, True), ("laion", False, False), ("odd", True, True)]
)
def test_the_tag_sets_the_activation(
    name: str, tag: bool, quick: bool, registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # open_clip 3 only warns when the activations of ViT-B-16 and of the tag openai differ.
    path = tmp_path / "open_clip_model.safetensors"
    save_file(tiny().state_dict(), path)
    entry = pretrained._pcfg(file=str(path), quick_gelu=tag, mean=(0.5, 0.5, 0.5))
    monkeypatch.setitem(pretrained._PRETRAINED, registered, {name: entry})
    model = clip.load(f"{registered}/{name}")
    assert model.spec.quick_gelu is quick
    assert isinstance(model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU) is quick
    assert model.spec.mean == (0.5, 0.5, 0.5)
    assert model.spec.context_length == 248
    assert (registered, name) in clip.supported()


def test_openais_weights_need_quickgelu() -> None:
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        assert get_pretrained_cfg(name, "openai")["quick_gelu"]
        assert architectures.spec_of(f"{name}-quickgelu").quick_gelu
    assert not get_pretrained_cfg("ViT-B-16", "laion2b_s34b_b88k").get("quick_gelu")


def test_a_weights_file_for_a_network_name(registered: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tiny().state_dict(), path)
    plain = clip.load(registered, pretrained=str(path))
    quick = clip.load(f"{registered}-quickgelu", pretrained=str(path))
    assert (plain.spec.quick_gelu, quick.spec.quick_gelu) == (False, True)
    assert plain.spec.vision_heads == 4
    # A file in the layout of the GOAL authors' release is QuickGELU, also under the plain name.
    save_file(weights.to_huggingface(tiny()), path)
    assert clip.load(registered, pretrained=str(path)).spec.quick_gelu


def test_a_failed_download_names_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        clip.load("ViT-B-16/openai")
    line = str(caught.value)
    assert "open_clip_config.json and open_clip_model.safetensors or open_clip_pytorch_model.bin" in line
    assert "into one folder, then set model.pretrained to the folder" in line
    assert "https://huggingface.co/timm/vit_base_patch16_clip_224.openai" in line
    assert "model.name to ViT-B-16-quickgelu" in line
    assert "\n" not in line


def test_the_embedded_network_needs_no_download() -> None:
    model = clip.load("scenes-vit", pretrained="embedded")
    assert clip.load("scenes-vit/embedded").spec == model.spec
    assert (model.spec.name, model.spec.context_length, model.spec.image_size) == ("scenes-vit", 248, 96)


@pytest.mark.parametrize(
    ("source", "pretrained", "reason"),
    [
        ("ViT-B-16", "no-such-tag", "neither a file nor a tag of ViT-B-16 .tags: openai, "),
        ("ViT-B-16", "embedded", "only scenes-vit comes with the package"),
        ("ViT-Z-99", "openai", "neither scenes-vit nor a name that open_clip knows"),
        ("models/nowhere", None, "neither a file nor a network with its weights, as in ViT-B-16/openai"),
        ("ViT-B-16", None, "neither a file nor a network with its weights"),
    ],
)
def test_unknown_networks_and_weights_are_refused(source: str, pretrained: str | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        clip.load(source, pretrained=pretrained)


@pytest.mark.parametrize("length", [10, 77, 100, 248])
def test_a_table_of_77_rows_is_stretched_or_cut_to_the_context_length(
    length: int, registered: str, tmp_path: Path
) -> None:
    original = tiny()
    weights.save(original, tmp_path)
    model = clip.load(tmp_path, length)
    expected = positions.stretch(original.positional_embedding, length)
    assert torch.equal(model.positional_embedding, expected)
    assert model.spec.context_length == length
    with torch.no_grad():
        torch.testing.assert_close(model.encode_texts(IDS), original.encode_texts(IDS), atol=1e-6, rtol=0)
    assert equal(weights.load(weights.save(model, tmp_path / "again")), model)


def test_without_a_context_length_the_table_is_unchanged(registered: str, tmp_path: Path) -> None:
    weights.save(tiny(context_length=120), tmp_path)
    assert clip.load(tmp_path, None).spec.context_length == 120
    assert clip.load(tmp_path, 120, view="squash").spec.view == "squash"


@pytest.mark.parametrize(("rows", "length"), [(77, 249), (77, 1), (248, 77), (248, 249), (248, 10)])
def test_context_lengths_that_do_not_fit_are_refused(
    rows: int, length: int, registered: str, tmp_path: Path
) -> None:
    weights.save(tiny(context_length=rows), tmp_path)
    reason = (
        "must be 2 to 248"
        if rows == 77
        else "of 248 rows is already stretched; set model.context_length to 248"
    )
    with pytest.raises(UserError, match=reason) as caught:
        clip.load(tmp_path, length)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused_with_the_differences(registered: str, tmp_path: Path) -> None:
    weights.save(tiny(text_layers=3, embed_dim=8), tmp_path)
    with pytest.raises(
        UserError, match="not a ViT-tiny: embed_dim 8 instead of 24, text_layers 3 instead of 2"
    ):
        clip.load(registered, pretrained=str(tmp_path))


@pytest.mark.parametrize("view", ["center_crop", "squash"])
def test_the_base_stage(view: str, registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = tiny()
    save_file(original.state_dict(), "w.safetensors")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["model"] |= {
        "name": registered,
        "pretrained": "w.safetensors",
        "context_length": 120,
        "view": view,
    }
    params = config.parse(values, "test")
    base.run(params)
    folder = paths.model_dir("zero-shot")
    model = weights.load(folder)
    assert (model.spec.context_length, model.spec.view) == (120, view)
    expected = positions.stretch(original.positional_embedding, 120, values["model"]["keep_positions"])
    assert torch.equal(model.positional_embedding, expected)
    card = json.loads((folder / "card.json").read_text())
    assert card["pretrained"] == "w.safetensors"
    assert card["sha256"] == weights.digest(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    base.run(params)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
