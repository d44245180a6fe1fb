"""What belongs to weights is read from the files beside them, or refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import pretrained
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from goal import clip, weights
from goal.errors import UserError
from goal.exports import folders
from goal.model import configs
from goal.model.network import GoalClip
from tests import networks, tiny

CAPTION = "A red ball beside the dog. It is small."
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SQUARE = {"height": 32, "width": 32}
SAID = {"do_resize": True, "do_normalize": True, "resample": 3, "image_mean": MEAN, "image_std": STD}
OLD = SAID | {"feature_extractor_type": "CLIPFeatureExtractor"}
NEW = SAID | {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_rescale": True}
# As transformers has written them over the years.
FORMS = {
    "ints": OLD | {"do_center_crop": True, "size": 32, "crop_size": 32},
    "dicts": NEW | {"do_center_crop": True, "size": {"shortest_edge": 32}, "crop_size": SQUARE},
    "both types": OLD | {"image_processor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": SQUARE},
    "nulls": NEW | {"size": {"shortest_edge": 32, "longest_edge": None}, "crop_size": SQUARE, "do_pad": None},
    "squash": NEW | {"do_center_crop": False, "size": SQUARE, "crop_size": {"height": 224, "width": 224}},
    "squash and crop": NEW | {"do_center_crop": True, "size": SQUARE, "crop_size": 32},
    "list": NEW | {"do_center_crop": False, "size": [32, 32]},
    "no mean": NEW | {"do_normalize": False, "size": 32, "crop_size": 32},
    "bytes": NEW
    | {"do_rescale": False, "image_mean": [127.0, 100, 90], "image_std": [60.0, 61, 62]}
    | {"size": 32, "crop_size": 32},
    "factor": NEW | {"rescale_factor": 1 / 127.5, "size": 32, "crop_size": 32},
}


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIPModel with other heads and activation than the shapes suggest, and its tokenizer."""
    torch.manual_seed(0)
    model = GoalClip(replace(tiny.SPEC, vision_heads=4, text_heads=8, quick_gelu=True))
    folders.transformers(model, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(50, 40), (40, 50)])
def test_pictures_are_prepared_as_transformers_does(form: str, size: tuple[int, int], folder: Path) -> None:
    write(folder / "preprocessor_config.json", FORMS[form])
    spec = weights.load(folder).spec
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(networks.picture(*size), return_tensors="pt")
    found = clip.preprocess(spec)(networks.picture(*size))
    torch.testing.assert_close(found[None], theirs["pixel_values"], atol=1e-5, rtol=0)
    assert spec.view == ("squash" if "squash" in form or form == "list" else "center_crop")


def test_the_processor_config_of_transformers_5_wins(folder: Path) -> None:
    write(folder / "preprocessor_config.json", FORMS["squash"])
    CLIPProcessor.from_pretrained(folder).save_pretrained(folder)
    assert (
        json.loads((folder / "processor_config.json").read_text())["image_processor"]["do_center_crop"]
        is False
    )
    write(folder / "preprocessor_config.json", FORMS["ints"] | {"image_mean": [0.1, 0.1, 0.1]})
    model = weights.load(folder)
    assert (model.spec.view, model.spec.mean) == ("squash", tuple(MEAN))
    expected = networks.by_transformers(folder, networks.picture(), CAPTION)
    torch.testing.assert_close(networks.ours(model, networks.picture(), CAPTION), expected, atol=1e-5, rtol=0)


CANNOT = {
    "crop": (FORMS["dicts"] | {"size": 40}, "size 40, crop_size 32: this project can only have equal ones"),
    "no crop": (FORMS["ints"] | {"do_center_crop": False}, "the pictures would not be square"),
    "oblong": (FORMS["list"] | {"size": [32, 40]}, "size {'height': 32, 'width': 40}: this project can only"),
    "longest": (FORMS["list"] | {"size": {"longest_edge": 32}}, "size {'longest_edge': 32}: this project"),
    "no resize": (FORMS["ints"] | {"do_resize": False}, "do_resize False: this project can only have True"),
    "bilinear": (FORMS["ints"] | {"resample": 2}, "resample 2: this project can only have 3"),
    "pad": (FORMS["ints"] | {"do_pad": True}, "do_pad True: this project can only have False"),
    "another": (
        FORMS["ints"] | {"feature_extractor_type": "ViTFeatureExtractor"},
        "ViTFeatureExtractor: only CLIP's image processors can be read",
    ),
    "another size": (
        FORMS["ints"] | {"size": 64, "crop_size": 64},
        "says image_size 64, the weights have 32",
    ),
    "two means": (FORMS["ints"] | {"image_mean": [0.5, 0.5]}, "image_mean [0.5, 0.5]: three finite numbers"),
    "std": (FORMS["ints"] | {"image_std": [0.5, 0, 0.5]}, "image_std [0.5, 0, 0.5]: three finite numbers"),
    "text": (FORMS["ints"] | {"image_mean": "0.5"}, "beside it is not of a CLIP"),
    "no dict": ([], "beside it is not of a CLIP"),
    "odd size": (FORMS["ints"] | {"size": "224"}, "beside it is not of a CLIP"),
}


@pytest.mark.parametrize("what", CANNOT)
def test_a_preprocessing_that_cannot_be_is_refused_by_name(what: str, folder: Path) -> None:
    content, reason = CANNOT[what]
    write(folder / "preprocessor_config.json", content)
    with pytest.raises(UserError) as caught:
        weights.load(folder)
    assert str(caught.value).startswith(
        f"{folder / 'model.safetensors'}: {folder / 'preprocessor_config.json'}"
    )
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def changed(folder: Path, **fields: object) -> dict:
    """config.json with fields such as text_config__hidden_act changed; it is written too."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (config.setdefault(section, {}) if section else config)[field] = value
    write(folder / "config.json", config)
    return config


def test_the_dicts_of_old_configs_win_as_in_transformers(folder: Path) -> None:
    """And bring transformers' defaults with them: 8 and 12 heads, QuickGELU, where they say nothing."""
    model = weights.load(folder)
    assert (model.spec.vision_heads, model.spec.text_heads, model.spec.quick_gelu) == (4, 8, True)
    shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text = shapes | {"hidden_act": "gelu", "num_attention_heads": 2}
    vision = shapes | {"hidden_act": "gelu", "num_attention_heads": 1, "image_size": 32, "patch_size": 16}
    config = changed(folder, text_config_dict=text, vision_config_dict=vision)
    model = weights.load(folder)
    read = CLIPConfig.from_dict(config)
    heads = read.vision_config.num_attention_heads, read.text_config.num_attention_heads
    assert (model.spec.vision_heads, model.spec.text_heads) == heads == (1, 2)
    assert not model.spec.quick_gelu
    expected = networks.by_transformers(folder, networks.picture(), CAPTION)
    torch.testing.assert_close(networks.ours(model, networks.picture(), CAPTION), expected, atol=1e-5, rtol=0)
    changed(folder, text_config_dict=shapes | {"hidden_act": "gelu"})
    assert weights.load(folder).spec.text_heads == 8


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"text_config__hidden_act": "gelu"},
            "vision_config quick_gelu, text_config gelu: this network has the same",
        ),
        (
            {"vision_config__hidden_act": "gelu_new"},
            "vision_config: hidden_act gelu_new: this project can only have",
        ),
        (
            {"text_config__layer_norm_eps": 1e-6},
            "text_config: layer_norm_eps 1e-06: this project can only have 1e-05",
        ),
        ({"vision_config_dict__layer_norm_eps": 1e-12}, "vision_config: layer_norm_eps 1e-12"),
        ({"text_config__eos_token_id": 7}, "eos_token_id 7: this project can only have 2 or 49407"),
        ({"vision_config__num_channels": 4}, "num_channels 4: this project can only have 3"),
        ({"text_config__interpolation_keep_length": 10}, "interpolation_keep_length 10"),
        ({"projection_dim": 512}, "config.json says embed_dim 512, the weights have 24"),
        ({"vision_config__image_size": 64}, "vision_config says image_size 64, the weights have 32"),
        ({"text_config__max_position_embeddings": 248}, "says context_length 248, the weights have 77"),
        ({"text_config__num_attention_heads": 5}, "text width 32 does not divide into 5 heads"),
        ({"text_config__num_attention_heads": "all"}, "beside it is not of a CLIP"),
        ({"model_type": "siglip"}, "model_type siglip: only clip and longclip can be read"),
        ({"text_config": None}, "beside it is not of a CLIP: no text_config"),
        ({"text_config": 3}, "beside it is not of a CLIP"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(fields: dict, reason: str, folder: Path) -> None:
    changed(folder, **fields)
    with pytest.raises(UserError) as caught:
        weights.load(folder)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_shapes_no_embedding_is_not_asked(folder: Path) -> None:
    before = weights.load(folder).spec
    unused = {"attention_dropout": 0.1, "initializer_range": 0.5, "eos_token_id": 2, "image_size": [32, 32]}
    changed(
        folder, logit_scale_init_value=1.0, **{f"vision_config__{name}": one for name, one in unused.items()}
    )
    assert weights.load(folder).spec == before


@pytest.mark.parametrize("quick", [False, True])
def test_open_clips_config_beside_its_weights_is_read(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks.register(monkeypatch)
    config = networks.CONFIG | {"quick_gelu": quick}
    config = config | {"text_cfg": config["text_cfg"] | {"heads": 8}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-odd", config)
    options = {"image_mean": tuple(MEAN), "image_std": tuple(STD), "image_resize_mode": "squash"}
    theirs, _, _ = open_clip.create_model_and_transforms("ViT-odd", **options)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    save_config_for_hf(theirs, tmp_path / "open_clip_config.json", config)
    caplog.clear()
    model = weights.load(tmp_path)
    assert (model.spec.text_heads, model.spec.quick_gelu, model.spec.view) == (8, quick, "squash")
    assert caplog.messages == []
    expected = networks.by_open_clip(f"local-dir:{tmp_path}", networks.picture(), CAPTION)
    torch.testing.assert_close(networks.ours(model, networks.picture(), CAPTION), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("section", "change", "reason"),
    [
        (
            "preprocess_cfg",
            {"interpolation": "bilinear"},
            "interpolation bilinear: this project can only have",
        ),
        (
            "preprocess_cfg",
            {"resize_mode": "longest"},
            "resize_mode longest: this project can only have shortest",
        ),
        ("preprocess_cfg", {"size": 64}, "says image_size 64, the weights have 32"),
        ("preprocess_cfg", {"mean": [0.5]}, "mean [0.5]: three finite numbers"),
        ("model_cfg", {"embed_dim": 8}, "says embed_dim 8, the weights have 24"),
        ("model_cfg", {"text_cfg": {"hf_model_name": "roberta"}}, "its text tower is Hugging Face's roberta"),
        ("model_cfg", {"custom_text": True}, "not supported: it sets custom_text"),
        ("model_cfg", {"vision_cfg": None}, "beside it is not of a CLIP"),
    ],
)
def test_an_open_clip_config_that_cannot_be_is_refused_by_name(
    section: str, change: dict, reason: str, tmp_path: Path
) -> None:
    model = GoalClip(tiny.SPEC)
    folders.open_clip(model, tmp_path)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    content = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert weights.load(tmp_path).spec == replace(tiny.SPEC, name="custom")
    write(tmp_path / "open_clip_config.json", content | {section: content[section] | change})
    with pytest.raises(UserError) as caught:
        weights.load(tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_two_files_disagree_it_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As for DFN's ViT-H-14-378, whose open_clip_config.json says squash and the other file a crop."""
    write(folder / "preprocessor_config.json", FORMS["ints"])
    content = {"preprocess_cfg": {"mean": MEAN, "std": STD, "resize_mode": "squash"}}
    write(folder / "open_clip_config.json", content)
    assert weights.load(folder).spec.view == "center_crop"
    (line,) = caplog.messages
    assert f"as {folder / 'preprocessor_config.json'} says, by Preprocessing(view='center_crop'" in line
    assert f"{folder / 'open_clip_config.json'} says Preprocessing(view='squash'" in line
    (folder / "preprocessor_config.json").unlink()
    assert weights.load(folder).spec.view == "squash"


def test_what_nothing_says_is_assumed_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    weights.load(folder)
    assert caplog.messages == []
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    model = weights.load(folder)
    (line,) = caplog.messages
    assert "assuming QuickGELU, 2 and 2 heads, center_crop and OpenAI's mean and deviation" in line
    assert line.startswith(str(folder / "model.safetensors"))
    caplog.clear()
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    weights.load(tmp_path / "plain.safetensors", heads=(2, 2))
    (line,) = caplog.messages
    assert "assuming GELU (model.name with -quickgelu: QuickGELU), center_crop" in line
    caplog.clear()
    weights.save(model, tmp_path / "own")
    weights.load(tmp_path / "own")
    assert caplog.messages == []


def test_shards_and_pickles_hold_the_same_network(folder: Path, tmp_path: Path) -> None:
    theirs = CLIPModel.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 1
    (tmp_path / "pickle").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "pickle" / "config.json").write_text((folder / "config.json").read_text())
    whole = weights.load(folder)
    for name in ("shards", "pickle", "shards/model.safetensors.index.json"):
        again = weights.load(tmp_path / name)
        assert networks.equal(again, whole)
        assert again.spec == whole.spec
    before = weights.digest(tmp_path / "shards")
    shard = tmp_path / "shards" / "model-00002-of-00002.safetensors"
    state = open_clip.factory.load_state_dict(shard)
    save_file({key: value + 1 for key, value in state.items()}, shard)
    assert weights.digest(tmp_path / "shards") != before
    shard.unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors: cannot be read: No such file"):
        weights.load(tmp_path / "shards")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"weight_map": {"logit_scale": "../model.safetensors"}},
            r"names no files of its own folder: \.\./model",
        ),
        ({"weight_map": {}}, "names no files of its own folder: none at all"),
        ([], "not an index of weights in shards"),
        ({"weight_map": {"logit_scale": 3}}, "not an index of weights in shards"),
    ],
)
def test_an_index_of_no_use_is_refused(content: object, reason: str, tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors.index.json", content)
    with pytest.raises(UserError, match=reason):
        weights.load(tmp_path)


def test_a_tag_brings_its_preprocessing_and_the_advice_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What ViT-H-14-quickgelu/dfn5b (squash) and ViT-L-14/laion2b_s32b_b82k (mean 0.5) say."""
    name = f"{networks.register(monkeypatch)}-quickgelu"
    save_file(networks.tiny().state_dict(), tmp_path / "open_clip_model.safetensors")
    entry = pretrained._pcfg(
        file=str(tmp_path / "open_clip_model.safetensors"),
        quick_gelu=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        resize_mode="squash",
    )
    monkeypatch.setitem(pretrained._PRETRAINED, name, {"odd": entry})
    expected = networks.by_open_clip(name, networks.picture(), CAPTION, pretrained="odd")
    model = clip.load(f"{name}/odd", None)
    torch.testing.assert_close(networks.ours(model, networks.picture(), CAPTION), expected, atol=1e-5, rtol=0)
    # The repository of a tag has the file that open_clip wrote when it was pushed.
    theirs, _, _ = open_clip.create_model_and_transforms(name, pretrained="odd")
    save_config_for_hf(theirs, tmp_path / "open_clip_config.json", open_clip.get_model_config(name))
    caplog.clear()
    for given in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        again = clip.load(name, None, pretrained=str(given))
        assert again.spec == model.spec
        assert networks.equal(again, model)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "tag", "view", "mean"),
    [
        ("ViT-H-14-quickgelu", "dfn5b", "squash", 0.48145466),
        ("ViT-H-14-378-quickgelu", "dfn5b", "squash", 0.48145466),
        ("ViT-L-14", "laion2b_s32b_b82k", "center_crop", 0.5),
        ("ViT-B-16", "openai", "center_crop", 0.48145466),
    ],
)
def test_the_preprocessing_of_open_clips_own_tags(name: str, tag: str, view: str, mean: float) -> None:
    found = configs.open_clip_pictures(tag, pretrained.get_pretrained_cfg(name, tag)).preprocessing
    assert (found.view, found.mean[0]) == (view, mean)


def test_all_supported_tags_can_be_prepared() -> None:
    for name, tag in clip.supported():
        configs.open_clip_pictures(tag, pretrained.get_pretrained_cfg(name, tag))


def test_a_name_that_contradicts_the_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = networks.register(monkeypatch)
    folders.open_clip(networks.tiny(), tmp_path / "out")
    with pytest.raises(UserError, match=f"has the activation GELU; set model.name to {name}$"):
        clip.load(f"{name}-quickgelu", pretrained=str(tmp_path / "out"))
    folders.transformers(networks.tiny(text_heads=2), tmp_path / "heads")
    with pytest.raises(UserError, match=f"not a {name}: text_heads 2 instead of 4"):
        clip.load(name, pretrained=str(tmp_path / "heads"))
    folders.open_clip(networks.tiny(quick_gelu=True), tmp_path / "quick")
    assert clip.load(name, pretrained=str(tmp_path / "quick")).spec.quick_gelu


def test_an_explicit_view_is_taken_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder / "preprocessor_config.json", FORMS["squash"])
    assert clip.load(folder, None).spec.view == "squash"
    assert clip.load(folder, None, view="squash").spec.view == "squash"
    assert caplog.messages == []
    assert clip.load(folder, None, view="center_crop").spec.view == "center_crop"
    assert caplog.messages == [f"{folder}: pictures become square by center_crop instead of squash"]
