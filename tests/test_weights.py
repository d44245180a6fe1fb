"""The project's own weights files, and that open_clip reads them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from goal import clip, weights
from goal.config import paths
from goal.errors import UserError
from goal.exports import folders
from goal.model.network import GoalClip, Spec
from tests import networks
from tests.networks import equal, tiny
from tests.tiny import SPEC

IDS = torch.tensor([[49406, 320, 1125, 49407, 0, 0]])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    return networks.register(monkeypatch)


@pytest.fixture
def model() -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(SPEC)


def test_save_and_load_keep_every_bit_and_the_network(model: GoalClip, tmp_path: Path) -> None:
    model.spec = replace(SPEC, view="squash", mean=(0.1, 0.2, 0.3))
    assert weights.save(model, tmp_path / "a") == tmp_path / "a" / "model.safetensors"
    weights.save(model, tmp_path / "b.safetensors")
    for path in (tmp_path / "a", str(tmp_path / "a" / "model.safetensors"), tmp_path / "b.safetensors"):
        again = weights.load(path)
        assert equal(again, model)
        assert again.spec == model.spec
        assert all(value.requires_grad for value in again.parameters())
    assert weights.digest(tmp_path / "a") == weights.digest(tmp_path / "b.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a", "b.safetensors"]


def test_a_published_model_has_a_card_with_the_digest_of_its_weights(model: GoalClip, tmp_path: Path) -> None:
    weights.publish(model, tmp_path / "m", {"name": "stage1"})
    card = json.loads((tmp_path / "m" / paths.CARD).read_text())
    assert card["name"] == "stage1"
    assert card["sha256"] == weights.digest(tmp_path / "m")
    assert card["network"]["text_heads"] == SPEC.text_heads


def test_plain_open_clip_reads_the_file(registered: str, tmp_path: Path) -> None:
    model = tiny(context_length=248, quick_gelu=True)
    path = weights.save(model, tmp_path)
    theirs = open_clip.create_model(
        registered, pretrained=str(path), force_context_length=248, force_quick_gelu=True
    )
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.state_dict().items())
    ids = torch.nn.functional.pad(IDS, (0, 242))
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_text(ids), model.encode_texts(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("view", ["center_crop", "squash"])
def test_plain_open_clip_reads_the_folder(view: str, model: GoalClip, tmp_path: Path) -> None:
    model.spec = replace(SPEC, view=view, std=(0.5, 0.5, 0.5))
    folders.open_clip(model, tmp_path)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.state_dict().items())
    picture = torch.randint(0, 256, (40, 57, 3), dtype=torch.uint8).numpy()
    image = clip.Image.fromarray(picture)
    assert torch.equal(preprocess(image), clip.preprocess(model.spec)(image))
    again = weights.load(tmp_path)
    assert equal(again, model)
    assert again.spec == model.spec


def test_a_failed_write_leaves_no_file(model: GoalClip, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        weights.save(model, tmp_path / "file" / "model")
    (tmp_path / "taken.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"taken.safetensors: cannot be written"):
        weights.save(model, tmp_path / "taken.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.safetensors"]


def test_the_description_survives_odd_hidden_sizes() -> None:
    # int(width * ratio) must equal the hidden units, also for ratios such as ViT-g's 4.3637.
    for hidden in range(1, 300):
        spec: Spec = replace(SPEC, vision_mlp=hidden, text_mlp=hidden)
        assert int(spec.vision_width * spec.config["vision_cfg"]["mlp_ratio"]) == hidden
