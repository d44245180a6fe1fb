"""The key layouts of CLIP checkpoints, converted to open_clip's and back: names and shapes, no files.

open_clip's layout, which OpenAI's weights share, is the project's own. Hugging Face's `CLIPModel` keeps
query, key and value apart and transposes the projections. Long-CLIP splits the position table into a fixed
and a trained one.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from goal.errors import UserError
from goal.model import architectures
from goal.model.network import Spec

StateDict = dict[str, Tensor]

# What wrappers put before every key: DDP, torch.compile, and modules that hold the network under a name.
_PREFIX = re.compile(r"^(?:(?:module|_orig_mod|model|clip|clip_model)\.)+")
# The Hugging Face layout of Long-CLIP has one tower inside the other.
_NESTED = re.compile(r"^(text_model|vision_model)\.\1\.")
# Numbers and index buffers that checkpoints carry beside the weights.
_NOT_WEIGHTS = re.compile(r"(?:^|\.)(?:position_ids|input_resolution|context_length|vocab_size|attn_mask)$")
_POSITIONS = "text_model.embeddings.position_embedding.weight"
# Long-CLIP takes this many rows from its fixed table and the rest from the trained one.
_LONG_CLIP_FIXED = 20
# (the fixed table, the trained one) in OpenAI's layout and in both that Hugging Face's hub has.
_LONG_CLIP_TABLES = (
    ("positional_embedding", "positional_embedding_res"),
    (_POSITIONS, "text_model.embeddings.position_embedding_res.weight"),
    (_POSITIONS, "text_model.embeddings.position_embedding_res"),
)

_TOWERS = {"transformer": "text_model", "visual.transformer": "vision_model"}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OTHERS = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": _POSITIONS,
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    # The spelling is Hugging Face's.
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = {"text_projection", "visual.proj"}


def huggingface_names(vision_layers: int, text_layers: int) -> dict[str, tuple[str, ...]]:
    """open_clip's keys, each with the one or three (query, key, value) keys of Hugging Face that it holds."""
    names = {ours: (theirs,) for ours, theirs in _OTHERS.items()}
    for (ours, theirs), layers in zip(_TOWERS.items(), (text_layers, vision_layers), strict=True):
        for layer in range(layers):
            block, source = f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                parts = tuple(f"{source}.self_attn.{part}_proj.{kind}" for part in "qkv")
                names[f"{block}.attn.in_proj_{kind}"] = parts
                names |= {
                    f"{block}.{here}.{kind}": (f"{source}.{there}.{kind}",) for here, there in _BLOCK.items()
                }
    return names


def to_huggingface(state: Mapping[str, Tensor], spec: Spec) -> StateDict:
    """Rename an open_clip state dict into the layout of Hugging Face's CLIPModel, values untouched."""
    result: StateDict = {}
    for ours, theirs in huggingface_names(spec.vision_layers, spec.text_layers).items():
        value = state[ours].T if ours in _TRANSPOSED else state[ours]
        # Clones: no part keeps the memory of the whole, and the network may train on.
        parts = value.chunk(len(theirs)) if len(theirs) > 1 else (value,)
        result |= {
            name: part.clone(memory_format=torch.contiguous_format)
            for name, part in zip(theirs, parts, strict=True)
        }
    return result


def to_open_clip(state: Mapping[str, Tensor]) -> tuple[StateDict, bool | None]:
    """Bring a state dict of any known layout into open_clip's, without wrappers' prefixes and index buffers.

    Also says whether the layout implies QuickGELU: True for OpenAI's own and Long-CLIP's, None where it does
    not tell. Raises UserError naming what is missing or unexpected.
    """
    named = {_plain(key): value for key, value in state.items()}
    if len(named) < len(state):
        raise UserError("holds two networks: some keys are the same but for prefixes")
    weights = {key: value for key, value in named.items() if not _NOT_WEIGHTS.search(key)}
    if any(key.startswith("visual.layer1.") for key in weights):
        raise UserError("not supported: its image tower is a ResNet, which has no patch tokens")
    merged = _merged(weights)
    implied = True if "input_resolution" in named or len(merged) < len(weights) else None
    return _from_huggingface(merged) if is_huggingface(merged) else merged, implied


def is_huggingface(names: Iterable[str]) -> bool:
    """Whether keys, prefixed or not, are those of Hugging Face's CLIPModel."""
    return any(_plain(name).startswith(("text_model.", "vision_model.")) for name in names)


def _plain(key: str) -> str:
    """A key without what wrappers put before it."""
    return _NESTED.sub(r"\1.", _PREFIX.sub("", key))


def _from_huggingface(state: StateDict) -> StateDict:
    layers = (_layers(state, f"{tower}.encoder.layers") for tower in ("vision_model", "text_model"))
    names = huggingface_names(*layers)
    check_names(state, [name for parts in names.values() for name in parts])
    result = {}
    for ours, theirs in names.items():
        parts = [state[name] for name in theirs]
        if any(part.shape != parts[0].shape for part in parts):
            raise UserError(f"{', '.join(theirs)}: shapes differ")
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        result[ours] = value.T.contiguous() if ours in _TRANSPOSED else value
    return result


def _merged(state: StateDict) -> StateDict:
    """The state with Long-CLIP's two position tables, if it has them, as one."""
    for fixed_key, trained_key in _LONG_CLIP_TABLES:
        if trained_key in state:
            fixed, trained = state.get(fixed_key), state[trained_key]
            if fixed is None or fixed.shape != trained.shape:
                raise UserError(f"{fixed_key}: missing, or of another shape than {trained_key}")
            table = torch.cat([fixed[:_LONG_CLIP_FIXED], trained[_LONG_CLIP_FIXED:]])
            return {key: value for key, value in state.items() if key != trained_key} | {fixed_key: table}
    return state


def check_names(found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise UserError with every missing and every unexpected key, if there is one."""
    found, wanted = set(found), set(wanted)
    faults = [
        f"{kind}: {', '.join(sorted(names))}"
        for kind, names in (("missing keys", wanted - found), ("unexpected keys", found - wanted))
        if names
    ]
    if faults:
        raise UserError("; ".join(faults))


def spec_of_shapes(state: StateDict, heads: tuple[int, int] | None, quick_gelu: bool) -> Spec:
    """The network that an open_clip state dict belongs to.

    heads: (vision, text), which leave no trace in the shapes; None: those of the known network with these
    shapes, else max(2, width // 64). Raises UserError naming the keys that tell the shapes and are missing or
    not of a CLIP with a ViT.
    """
    telling = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 2,
    }
    absent = [key for key, dims in telling.items() if key not in state or state[key].ndim != dims]
    if absent:
        raise UserError(f"not a CLIP with a ViT image tower: missing or misshapen keys: {', '.join(absent)}")
    patches = len(state["visual.positional_embedding"]) - 1
    patch_size = state["visual.conv1.weight"].shape[-1]
    vision_width, text_width = state["visual.conv1.weight"].shape[0], state["token_embedding.weight"].shape[1]
    spec = Spec(
        name=architectures.CUSTOM,
        image_size=math.isqrt(max(patches, 0)) * patch_size,
        patch_size=patch_size,
        embed_dim=state["visual.proj"].shape[1],
        vision_width=vision_width,
        vision_layers=_layers(state, "visual.transformer.resblocks"),
        vision_heads=max(2, vision_width // 64),
        vision_mlp=len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        text_width=text_width,
        text_layers=_layers(state, "transformer.resblocks"),
        text_heads=max(2, text_width // 64),
        text_mlp=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        vocab_size=len(state["token_embedding.weight"]),
        context_length=len(state["positional_embedding"]),
        quick_gelu=quick_gelu,
    )
    known = architectures.match(spec)
    if known is not None:
        spec = replace(spec, name=known.name, vision_heads=known.vision_heads, text_heads=known.text_heads)
    if heads is not None:
        spec = replace(spec, vision_heads=heads[0], text_heads=heads[1])
    for tower, width, count in (
        ("vision", vision_width, spec.vision_heads),
        ("text", text_width, spec.text_heads),
    ):
        if count < 1 or width % count:
            raise UserError(
                f"{tower} width {width} does not divide into {count} heads: give heads=(vision, text)"
            )
    return spec


def _layers(state: Iterable[str], prefix: str) -> int:
    numbers = {key[len(prefix) + 1 :].split(".")[0] for key in state if key.startswith(f"{prefix}.")}
    return len({number for number in numbers if number.isdigit()})
