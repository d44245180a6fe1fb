"""Weights in and out: round trips to the bit, foreign layouts, open_clip reading ours, and files that lie."""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import load_file, save_file

from goal import architectures, clip, exports, positions, weights
from goal.errors import Unavailable, UserError
from goal.network import GoalClip, Spec
from tests.tiny import SPEC

FIXTURES = Path(__file__).parent / "fixtures"
HUGGINGFACE = load_file(FIXTURES / "hf_clip_tiny.safetensors")
# A network under open_clip's roof, small enough for tests.
NAME = "ViT-tiny"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 4, "layers": 2},
}
IDS = torch.tensor([[49406, 320, 1125, 49407, 0, 0]])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    """open_clip knows ViT-tiny and ViT-tiny-quickgelu."""
    known = factory._MODEL_CONFIGS | {NAME: CONFIG, f"{NAME}-quickgelu": {**CONFIG, "quick_gelu": True}}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", known)
    return NAME


@pytest.fixture
def model() -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(SPEC)


def tiny(name: str = NAME, **changes: object) -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(replace(architectures.spec_of(name), **changes))


def equal(one: GoalClip, other: GoalClip) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def long_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network as Long-CLIP stores it: what the fixed and the trained table hide is noise."""
    table = state["positional_embedding"]
    fixed, trained = torch.randn_like(table), torch.randn_like(table)
    fixed[:20], trained[20:] = table[:20], table[20:]
    return {**state, "positional_embedding": fixed, "positional_embedding_res": trained}


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


def test_a_published_model_has_a_card_that_names_its_file(model: GoalClip, tmp_path: Path) -> None:
    weights.publish(model, tmp_path / "m", {"name": "stage1"})
    card = json.loads((tmp_path / "m" / weights.CARD).read_text())
    assert card["name"] == "stage1"
    assert card["sha256"] == weights.digest(tmp_path / "m")
    assert card["network"]["text_heads"] == SPEC.text_heads


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
        spec = weights.layouts.spec_of_shapes(state, None, True)
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
    exports.transformers(original, tmp_path)
    again = weights.load(tmp_path)
    assert again.spec == original.spec
    assert equal(again, original)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json beside it is not of a CLIPModel"):
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
    exports.open_clip(model, tmp_path)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.state_dict().items())
    picture = torch.randint(0, 256, (40, 57, 3), dtype=torch.uint8).numpy()
    image = clip.Image.fromarray(picture)
    assert torch.equal(preprocess(image), clip.preprocess(model.spec)(image))
    again = weights.load(tmp_path / "open_clip_model.safetensors")
    assert equal(again, model)
    assert again.spec == model.spec


@pytest.mark.parametrize(
    ("name", "tag", "quick"), [("openai", True, True), ("laion", False, False), ("odd", True, True)]
)
def test_a_tag_decides_on_the_activation(
    name: str, tag: bool, quick: bool, registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # open_clip 3 only warns when ViT-B-16 and the tag openai do not agree.
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


def test_openais_weights_are_known_to_want_quickgelu() -> None:
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        assert get_pretrained_cfg(name, "openai")["quick_gelu"]
        assert architectures.spec_of(f"{name}-quickgelu").quick_gelu
    assert not get_pretrained_cfg("ViT-B-16", "laion2b_s34b_b88k").get("quick_gelu")


def test_a_file_under_a_name(registered: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tiny().state_dict(), path)
    plain = clip.load(registered, pretrained=str(path))
    quick = clip.load(f"{registered}-quickgelu", pretrained=str(path))
    assert (plain.spec.quick_gelu, quick.spec.quick_gelu) == (False, True)
    assert plain.spec.vision_heads == 4
    # The GOAL authors' file under the plain name keeps the activation it was trained with.
    save_file(weights.to_huggingface(tiny()), path)
    assert clip.load(registered, pretrained=str(path)).spec.quick_gelu


def test_a_failed_download_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        clip.load("ViT-B-16/openai")
    line = str(caught.value)
    assert "open_clip_model.safetensors or open_clip_pytorch_model.bin" in line
    assert "https://huggingface.co/timm/vit_base_patch16_clip_224.openai" in line
    assert "model.name to ViT-B-16-quickgelu" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("source", "pretrained", "reason"),
    [
        ("ViT-B-16", "no-such-tag", "neither a file nor a tag of ViT-B-16 .these: openai, "),
        ("ViT-B-16", "embedded", "only scenes-vit comes with the package"),
        ("ViT-Z-99", "openai", "neither scenes-vit nor a name that open_clip knows"),
        ("models/nowhere", None, "no such file, and not a network with its weights, as in ViT-B-16/openai"),
        ("ViT-B-16", None, "no such file, and not a network with its weights"),
    ],
)
def test_what_cannot_be_loaded(source: str, pretrained: str | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        clip.load(source, pretrained=pretrained)


@pytest.mark.parametrize("length", [10, 77, 100, 248])
def test_a_table_of_77_is_brought_to_the_context(length: int, registered: str, tmp_path: Path) -> None:
    original = tiny()
    weights.save(original, tmp_path)
    model = clip.load(tmp_path, length)
    expected = positions.stretch(original.positional_embedding, length)
    assert torch.equal(model.positional_embedding, expected)
    assert model.spec.context_length == length
    with torch.no_grad():
        torch.testing.assert_close(model.encode_texts(IDS), original.encode_texts(IDS), atol=1e-6, rtol=0)
    assert equal(weights.load(weights.save(model, tmp_path / "again")), model)


def test_the_context_may_stay_as_it_is(registered: str, tmp_path: Path) -> None:
    weights.save(tiny(context_length=120), tmp_path)
    assert clip.load(tmp_path, None).spec.context_length == 120
    assert clip.load(tmp_path, 120, view="squash").spec.view == "squash"


@pytest.mark.parametrize(("rows", "length"), [(77, 249), (77, 1), (248, 77), (248, 249), (248, 10)])
def test_contexts_that_do_not_fit(rows: int, length: int, registered: str, tmp_path: Path) -> None:
    weights.save(tiny(context_length=rows), tmp_path)
    reason = (
        "must be 2 to 248" if rows == 77 else f"was made for 248 tokens.* set model.context_length to {rows}"
    )
    with pytest.raises(UserError, match=reason) as caught:
        clip.load(tmp_path, length)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_named(registered: str, tmp_path: Path) -> None:
    weights.save(tiny(text_layers=3, embed_dim=8), tmp_path)
    with pytest.raises(
        UserError, match="not a ViT-tiny: embed_dim 8 instead of 24, text_layers 3 instead of 2"
    ):
        clip.load(registered, pretrained=str(tmp_path))


class Bomb:
    """What a malicious checkpoint holds: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


def broken(state: dict[str, torch.Tensor], key: str, change: Callable) -> dict[str, torch.Tensor]:
    return {**state, key: change(state[key].clone())}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LIARS: dict[str, tuple[str, Callable[[Path, dict], None], str]] = {
    "nan": (
        "w.pt",
        lambda path, state: torch.save(broken(state, "ln_final.bias", lambda v: v.fill_(torch.nan)), path),
        "ln_final.bias holds NaN or infinite values",
    ),
    "shape": (
        "w.pt",
        lambda path, state: torch.save(broken(state, "ln_final.bias", lambda v: v[:-1]), path),
        re.escape("ln_final.bias has shape (31,), the network wants (32,)"),
    ),
    "cut safetensors": (
        "w.safetensors",
        lambda path, state: (save_file(state, path), truncate(path)),
        "not a whole safetensors file",
    ),
    "cut zip": (
        "w.pt",
        lambda path, state: (torch.save(state, path), truncate(path)),
        "not a whole checkpoint",
    ),
    "empty": ("w.pt", lambda path, state: path.touch(), "is empty"),
    "words": ("w.pt", lambda path, state: path.write_text("not weights at all"), "is no checkpoint"),
    "folder": ("w.pt", lambda path, state: path.mkdir(), "is a folder; name the weights file in it"),
    "absent": ("w.pt", lambda path, state: None, "cannot be read: No such file"),
    "not a dict": ("w.pt", lambda path, state: torch.save([1, 2], path), "holds a list, not a state dict"),
    "other values": ("w.pt", lambda path, state: torch.save({"a": 1}, path), "these are not tensors: a"),
    "another network": (
        "w.pt",
        lambda path, state: torch.save({"bert.pooler.weight": torch.zeros(2)}, path),
        "not a CLIP with a ViT image tower: missing or misshapen keys: visual.conv1.weight, ",
    ),
    "resnet": (
        "w.pt",
        lambda path, state: torch.save({**state, "visual.layer1.0.conv1.weight": torch.zeros(1)}, path),
        "its image tower is a ResNet",
    ),
    "twice": (
        "w.pt",
        lambda path, state: torch.save(
            state | {f"module.{key}": value for key, value in state.items()}, path
        ),
        "holds two networks",
    ),
    "script": (
        "w.pt",
        lambda path, state: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path),
        "a TorchScript program, which would run on loading",
    ),
}


@pytest.mark.parametrize("kind", LIARS)
def test_files_that_lie(kind: str, model: GoalClip, tmp_path: Path) -> None:
    name, make, reason = LIARS[kind]
    make(tmp_path / name, model.state_dict())
    with pytest.raises(UserError, match=reason) as caught:
        weights.load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_not_run(how: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    content = {"logit_scale": Bomb(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        UserError, match=r"(asks for \S+mkdir|no checkpoint.*); only tensors are read, nothing was run"
    ) as caught:
        weights.load(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[", "[]", '{"name": "x"}'])
def test_a_description_that_is_not_one(text: str, model: GoalClip, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors", {"goal": text})
    with pytest.raises(UserError, match=r"w.safetensors: its network"):
        weights.load(tmp_path / "w.safetensors")


def test_a_disk_that_refuses_leaves_nothing(model: GoalClip, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        weights.save(model, tmp_path / "file" / "model")
    (tmp_path / "taken.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"taken.safetensors: cannot be written"):
        weights.save(model, tmp_path / "taken.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.safetensors"]


def test_the_description_survives_odd_hidden_sizes() -> None:
    # int(width * ratio) must give the hidden units back, also for ratios like ViT-g's 4.3637.
    for hidden in range(1, 300):
        spec: Spec = replace(SPEC, vision_mlp=hidden, text_mlp=hidden)
        assert int(spec.vision_width * spec.config["vision_cfg"]["mlp_ratio"]) == hidden
