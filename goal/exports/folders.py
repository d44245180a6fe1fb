"""Folders that open_clip and Hugging Face transformers load unchanged."""

import json
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from goal import weights
from goal.config import paths
from goal.model.network import GoalClip, Spec
from goal.runtime import files, tensorfiles


def open_clip(model: GoalClip, folder: Path) -> None:
    """Write a folder for `open_clip.create_model_and_transforms("local-dir:<folder>")`.

    The weights file alone also loads, see goal.weights.save. Raises UserError if the disk refuses.
    """
    spec = model.spec
    preprocessing = {
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": "bicubic",
        "resize_mode": "squash" if spec.view == "squash" else "shortest",
    }
    content = {"model_cfg": spec.config, "preprocess_cfg": preprocessing}
    files.write_json(content, folder / "open_clip_config.json", sort=True)
    weights.save(model, folder / "open_clip_model.safetensors")


def transformers(model: GoalClip, folder: Path) -> None:
    """Write a folder for transformers' `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`.

    Texts: transformers does not clean them as open_clip and this project do (goal.cleaning.repair); once
    cleaned, by the line in the model card, they get the same tokens.
    Pictures: its torchvision backend rounds differently, its Pillow backend as ours; of a picture whose crop
    leaves 3, 7, 11 ... pixels of one side out, its centre crop is one pixel off open_clip's and ours.
    Raises UserError if the disk refuses.
    """
    files.write_json(_huggingface_config(model.spec), folder / "config.json", sort=True)
    preprocessor(model.spec, folder)
    _tokenizer(model.spec, folder)
    tensorfiles.write(folder / paths.WEIGHTS, weights.to_huggingface(model), {"format": "pt"})


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
    """Write preprocessor_config.json: how transformers turns a picture into a view."""
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
    files.write_json(content, folder / "preprocessor_config.json", sort=True)


def _tokenizer(spec: Spec, folder: Path) -> None:
    """Write CLIP's byte-pair vocabulary in the file formats of transformers."""
    pairs = SimpleTokenizer()
    # Tokens after the end do not change the embedding; transformers' CLIP pads with the end token.
    start, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": spec.context_length, **special}
    # open_clip has other names for them.
    names = {pairs.decoder[pairs.sot_token_id]: start, pairs.decoder[pairs.eot_token_id]: end}
    vocabulary = {names.get(token, token): number for token, number in pairs.encoder.items()}
    files.write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False) + "\n")
    merges = "".join(f"{first} {second}\n" for first, second in pairs.bpe_ranks)
    files.write_text(folder / "merges.txt", f"#version: 0.2\n{merges}")
    files.write_json(config, folder / "tokenizer_config.json", sort=True)
    files.write_json(special, folder / "special_tokens_map.json", sort=True)
