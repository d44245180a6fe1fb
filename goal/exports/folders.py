"""Folders that plain open_clip and Hugging Face transformers load as they are."""

import json
from pathlib import Path
from typing import Any

from goal import files, layout, tensorfiles, weights
from goal.model.network import GoalClip, Spec


def open_clip(model: GoalClip, folder: Path) -> None:
    """Write a folder for `open_clip.create_model_and_transforms("local-dir:<folder>")`.

    The weights file alone also loads, see goal.weights.save. Raises UserError where the disk refuses.
    """
    spec = model.spec
    preprocessing = {
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": "bicubic",
        "resize_mode": "squash" if spec.view == "squash" else "shortest",
    }
    _write(folder / "open_clip_config.json", {"model_cfg": spec.config, "preprocess_cfg": preprocessing})
    weights.save(model, folder / "open_clip_model.safetensors")


def transformers(model: GoalClip, folder: Path) -> None:
    """Write a folder for transformers' `CLIPModel.from_pretrained` and `CLIPImageProcessor.from_pretrained`.

    Texts: the tokenizer of any CLIP, `model_max_length` set to the context. Pictures: transformers' centre
    crop may lie one pixel beside open_clip's and ours. Raises UserError where the disk refuses.
    """
    _write(folder / "config.json", _huggingface_config(model.spec))
    preprocessor(model.spec, folder)
    tensorfiles.write(folder / layout.WEIGHTS, weights.to_huggingface(model), {"format": "pt"})


def _huggingface_config(spec: Spec) -> dict[str, Any]:
    shared = {
        "hidden_act": "quick_gelu" if spec.quick_gelu else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": spec.embed_dim,
    }
    vision = {
        "model_type": "clip_vision_model",
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "hidden_size": spec.vision_width,
        "num_hidden_layers": spec.vision_layers,
        "num_attention_heads": spec.vision_heads,
        "intermediate_size": spec.vision_mlp,
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "hidden_size": spec.text_width,
        "num_hidden_layers": spec.text_layers,
        "num_attention_heads": spec.text_heads,
        "intermediate_size": spec.text_mlp,
        # CLIP's vocabulary ends with BOS and EOS.
        "bos_token_id": spec.vocab_size - 2,
        "eos_token_id": spec.vocab_size - 1,
        "pad_token_id": 0,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": spec.embed_dim,
        "vision_config": vision | shared,
        "text_config": text | shared,
    }


def preprocessor(spec: Spec, folder: Path) -> None:
    """Write preprocessor_config.json: how a picture becomes a view, in the words of transformers."""
    side = spec.image_size
    square = {"height": side, "width": side}
    bicubic = 3
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if spec.view == "squash" else {"shortest_edge": side},
        "resample": bicubic,
        "do_center_crop": spec.view == "center_crop",
        "crop_size": square,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": spec.mean,
        "image_std": spec.std,
    }
    _write(folder / "preprocessor_config.json", content)


def _write(path: Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
