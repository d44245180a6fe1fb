"""Foreign checkpoints: Hugging Face's, the GOAL authors', Long-CLIP's, OpenAI's and plain open_clip's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from goal import clip, weights
from goal.errors import UserError
from goal.exports import folders
from goal.model import architectures, layouts
from goal.model.network import GoalClip
from tests.networks import HUGGINGFACE, equal
from tests.tiny import SPEC


@pytest.fixture
def model() -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(SPEC)


def long_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network as Long-CLIP stores it: what the fixed and the trained table hide is noise."""
    table = state["positional_embedding"]
    fixed, trained = torch.randn_like(table), torch.randn_like(table)
    fixed[:20], trained[20:] = table[:20], table[20:]
    return {**state, "positional_embedding": fixed, "positional_embedding_res": trained}


def test_a_loaded_network_is_its_own_memory(tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in HUGGINGFACE.items()}
    model = weights.from_huggingface(state)
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert all(torch.equal(value, HUGGINGFACE[key]) for key, value in state.items())


def test_huggingface_round_trip() -> None:
    model = weights.from_huggingface(HUGGINGFACE)
    again = weights.to_huggingface(model)
    assert again.keys() == HUGGINGFACE.keys()
    assert all(torch.equal(value, HUGGINGFACE[key]) for key, value in again.items())
    assert model.spec.quick_gelu
    assert (model.spec.vision_heads, model.spec.text_heads) == (2, 2)
    assert model.spec.context_length == 248


@pytest.mark.parametrize("prefix", ["module.", "model.", "clip.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("nested", ["", "state_dict", "model"])
def test_the_authors_release_as_a_pth_file(prefix: str, nested: str, tmp_path: Path) -> None:
    state = {f"{prefix}{key}": value for key, value in HUGGINGFACE.items()}
    state[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(248)[None]
    state[f"{prefix}vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save({nested: state, "epoch": 10} if nested else state, tmp_path / "goal.pth")
    model = clip.load(tmp_path / "goal.pth")
    assert equal(model, weights.from_huggingface(HUGGINGFACE))
    assert model.spec.quick_gelu


def test_heads_come_from_open_clips_network_of_the_same_shapes() -> None:
    for name, heads in (("ViT-B-16", (12, 8)), ("ViT-H-14", (16, 16)), ("ViT-bigG-14", (16, 20))):
        with torch.device("meta"):
            state = GoalClip(architectures.spec_of(name)).state_dict()
        spec = layouts.spec_of_shapes(state, None, True)
        assert (spec.name, spec.vision_heads, spec.text_heads) == (name, *heads)
        assert spec == replace(architectures.spec_of(name), quick_gelu=True)


def test_heads_and_activation_can_be_said() -> None:
    model = weights.from_huggingface(HUGGINGFACE, heads=(4, 8), quick_gelu=False)
    assert (model.spec.vision_heads, model.spec.text_heads, model.spec.quick_gelu) == (4, 8, False)
    assert model.transformer.resblocks[0].attn.heads == 8
    with pytest.raises(UserError, match="text width 32 does not divide into 5 heads"):
        weights.from_huggingface(HUGGINGFACE, heads=(4, 5))


def test_huggingfaces_config_beside_the_file_decides(tmp_path: Path) -> None:
    original = weights.from_huggingface(HUGGINGFACE, heads=(8, 4), quick_gelu=False)
    folders.transformers(original, tmp_path)
    again = weights.load(tmp_path)
    assert again.spec == original.spec
    assert equal(again, original)
    (tmp_path / "config.json").write_text("[]")
    # Another program's config.json beside another layout says nothing to us.
    weights.save(original, tmp_path / "own.safetensors")
    torch.save(original.state_dict(), tmp_path / "plain.pt")
    assert equal(weights.load(tmp_path / "own.safetensors"), original)
    assert equal(weights.load(tmp_path / "plain.pt"), original)
    with pytest.raises(UserError, match="config.json beside it is not of a CLIP"):
        weights.load(tmp_path)


def test_every_missing_and_unexpected_key_is_named() -> None:
    state = {**HUGGINGFACE, "text_model.head": torch.zeros(1), "extra": torch.zeros(1)}
    for key in ("logit_scale", "vision_model.encoder.layers.1.mlp.fc2.bias"):
        del state[key]
    with pytest.raises(UserError) as caught:
        weights.from_huggingface(state)
    assert str(caught.value) == (
        "missing keys: logit_scale, vision_model.encoder.layers.1.mlp.fc2.bias;"
        " unexpected keys: extra, text_model.head"
    )


def test_long_clips_two_tables_become_one(model: GoalClip, tmp_path: Path) -> None:
    state = model.state_dict()
    torch.save({f"module.{key}": value for key, value in long_clip(state).items()}, tmp_path / "long.pt")
    again = weights.load(tmp_path / "long.pt", heads=(2, 2))
    assert equal(again, model)
    assert again.spec.quick_gelu
    broken = {**state, "positional_embedding_res": torch.zeros(3, 32)}
    torch.save(broken, tmp_path / "long.pt")
    with pytest.raises(UserError, match="positional_embedding: missing, or of another shape than positional"):
        weights.load(tmp_path / "long.pt")


@pytest.mark.parametrize("nested", [False, True])
def test_long_clips_hugging_face_layouts(nested: bool, model: GoalClip, tmp_path: Path) -> None:
    """A second embedding table in the text tower; in the other one a parameter, and each tower in itself."""
    folders.transformers(model, tmp_path)
    state = weights.to_huggingface(model)
    table = "text_model.embeddings.position_embedding.weight"
    both = long_clip({"positional_embedding": state[table]})
    state[table] = both["positional_embedding"]
    trained = "position_embedding_res" if nested else "position_embedding_res.weight"
    state[f"text_model.embeddings.{trained}"] = both["positional_embedding_res"]
    if nested:
        names = {
            key: f"{key.split('.')[0]}.{key}" for key in state if key.startswith(("text_model", "vision_"))
        }
        state = {names.get(key, key): value for key, value in state.items()}
        config = json.loads((tmp_path / "config.json").read_text())
        text = config["text_config"] | {"model_type": "longclip_text_model", "interpolation_keep_length": 20}
        content = config | {"model_type": "longclip", "text_config": text}
        (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(state, tmp_path / "model.safetensors")
    again = weights.load(tmp_path)
    assert equal(again, model)
    assert again.spec == replace(SPEC, name="custom")
    del state[next(key for key in state if key.endswith("position_embedding.weight") and "text" in key)]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"position_embedding.weight: missing, or of another shape than"):
        weights.load(tmp_path)


def test_openais_own_layout_means_quickgelu(model: GoalClip, tmp_path: Path) -> None:
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    half = {key: value.half() for key, value in model.state_dict().items()}
    torch.save(half | numbers | {"vocab_size": torch.tensor(49408)}, tmp_path / "openai.pt")
    loaded = weights.load(tmp_path / "openai.pt")
    assert loaded.spec.quick_gelu
    assert all(value.dtype == torch.float32 for value in loaded.parameters())


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_plain_open_clip_files(model: GoalClip, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = model.state_dict() | {"logit_scale": model.logit_scale.detach()[None]}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    again = weights.load(path, heads=(2, 2), quick_gelu=False)
    assert equal(again, model)
    assert again.spec == SPEC
