"""Read and write weights: safetensors that describe their network, and other projects' checkpoints."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goal.config import paths
from goal.errors import UserError
from goal.model import layouts
from goal.model.network import GoalClip, Spec
from goal.runtime import files, tensorfiles

logger = logging.getLogger(__name__)

_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}
_METADATA = "goal"


def save(model: GoalClip, path: Path | str) -> Path:
    """Write the weights and the network's Spec as one safetensors file; returns its path.

    `path` is the file, or the folder of model.safetensors. open_clip reads the file too:
    `open_clip.create_model(spec.name, pretrained=path, force_context_length=spec.context_length,
    force_quick_gelu=spec.quick_gelu)`; the folders that goal.exports writes need no such arguments.
    """
    file = _default_file(Path(path))
    tensorfiles.write(file, model.state_dict(), {_METADATA: json.dumps(asdict(model.spec), sort_keys=True)})
    return file


def publish(model: GoalClip, folder: Path, card: Mapping[str, Any]) -> Path:
    """Write a finished model: its weights, then card.json: `card`, the file's sha256 and the network."""
    file = save(model, folder)
    content = {**card, "sha256": digest(file), "network": asdict(model.spec)}
    files.write_json(content, folder / paths.CARD, sort=True)
    return file


def card(folder: Path) -> dict[str, Any]:
    """What `publish` wrote of a model; empty where another project's weights lie there."""
    file = folder / paths.CARD
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def load(
    path: Path | str, *, heads: tuple[int, int] | None = None, quick_gelu: bool | None = None
) -> GoalClip:
    """Read a network from a weights file or a folder with one (`file_of`); its context length is kept.

    Reads this project's safetensors, and state dicts (safetensors, or torch.save) in the layout of open_clip
    and OpenAI, of Hugging Face's CLIPModel (such as the GOAL authors' release) and of Long-CLIP.
    heads (vision, text) and quick_gelu: attention heads and activation, which state dicts do not say; None:
    as Hugging Face's config.json beside the file says, else as layouts.to_open_clip and
    layouts.spec_of_shapes assume. Raises UserError that names the file and what is wrong with it.
    """
    file = file_of(path)
    tensors, metadata = tensorfiles.read(file)
    try:
        if _METADATA in metadata:
            return build(_spec(metadata[_METADATA]), tensors)
        config = _huggingface_config(file) if layouts.is_huggingface(tensors) else (None, None)
        return _foreign(tensors, heads or config[0], config[1] if quick_gelu is None else quick_gelu)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def from_huggingface(
    state_dict: Mapping[str, Tensor], *, heads: tuple[int, int] | None = None, quick_gelu: bool = True
) -> GoalClip:
    """The network of a Hugging Face CLIPModel's state dict; architecture and context from the shapes.

    heads: attention heads (vision, text), which the shapes do not show; None: those of open_clip's network
    with the same shapes, else max(2, width // 64). quick_gelu: True for OpenAI's weights and those fine-tuned
    from them, False for LAION's. Keys may have the prefixes of wrappers such as DDP.
    Raises UserError naming every missing and unexpected key.
    """
    return _foreign(state_dict, heads, quick_gelu)


def to_huggingface(model: GoalClip) -> dict[str, Tensor]:
    """The weights in the layout of Hugging Face's CLIPModel; `from_huggingface` restores the same bits."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    return layouts.to_huggingface(state, model.spec)


def _foreign(state: Mapping[str, Tensor], heads: tuple[int, int] | None, quick_gelu: bool | None) -> GoalClip:
    tensors, implied = layouts.to_open_clip(state)
    gelu = implied if quick_gelu is None else quick_gelu
    spec = layouts.spec_of_shapes(tensors, heads, bool(gelu))
    if gelu is None:
        logger.warning(
            "%s in open_clip's layout: assuming the activation GELU; for OpenAI's weights use a name that"
            " ends in -quickgelu",
            spec.name,
        )
    return build(spec, tensors)


def build(spec: Spec, state: Mapping[str, Tensor]) -> GoalClip:
    """A network of `spec` with copies of the tensors of `state` as its float32 weights.

    Raises UserError naming every missing and unexpected key, or the first of wrong shape or not finite.
    """
    with torch.device("meta"):
        model = GoalClip(spec)
    expected = model.state_dict()
    layouts.check_names(state, expected)
    copies = {}
    for key, empty in expected.items():
        # Some releases store the logit scale with shape (1,).
        value = state[key].reshape(()) if key == "logit_scale" and state[key].numel() == 1 else state[key]
        if value.shape != empty.shape:
            raise UserError(f"{key} has shape {tuple(value.shape)}, the network needs {tuple(empty.shape)}")
        if not value.isfinite().all():
            raise UserError(f"{key} holds NaN or infinite values")
        copies[key] = value.detach().to(torch.float32, copy=True)
    model.load_state_dict(copies, assign=True)
    return model


def _spec(text: str) -> Spec:
    try:
        values = json.loads(text)
        if values.keys() != {field.name for field in fields(Spec)}:
            raise UserError("its network description is from another version of this project")
        return Spec(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"its network description cannot be read: {error}") from error


def _huggingface_config(file: Path) -> tuple[tuple[int, int] | None, bool | None]:
    """Attention heads (vision, text) and quick_gelu from a Hugging Face config.json beside the weights."""
    path = file.with_name("config.json")
    if not path.exists():
        return None, None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision, text = config["vision_config"], config["text_config"]
        # Hugging Face leaves out its defaults, which are those of OpenAI's ViT-B.
        heads = vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8)
        return heads, text.get("hidden_act", "quick_gelu") == "quick_gelu"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} beside it is not of a CLIPModel ({error!r}); fix or remove it") from error


def file_of(path: Path | str) -> Path:
    """The weights file itself, or the one in a folder: model.safetensors, else the only weights file there.

    The file may be missing. Raises UserError for a folder with several, naming them.
    """
    path = Path(path)
    if not path.is_dir():
        return _default_file(path)
    file = path / paths.WEIGHTS
    others = sorted(one.name for one in path.iterdir() if one.suffix in _SUFFIXES)
    if file.exists() or not others:
        return file
    if len(others) > 1:
        raise UserError(f"{path}: has no {paths.WEIGHTS}; name one of the weights in it: {', '.join(others)}")
    return path / others[0]


def _default_file(path: Path) -> Path:
    return path if path.is_file() or path.suffix in _SUFFIXES else path / paths.WEIGHTS


def digest(path: Path | str) -> str:
    """sha256 of the weights file in hex: it identifies the model in MLflow and in caches."""
    return files.digest(file_of(path))
