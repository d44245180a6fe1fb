"""Weights in and out: safetensors that carry their network, foreign checkpoints read strictly, exports."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goal import layouts, tensorfiles
from goal.errors import UserError
from goal.network import GoalClip, Spec

logger = logging.getLogger(__name__)

FILE = "model.safetensors"
CARD = "card.json"
_METADATA = "goal"


def save(model: GoalClip, path: Path | str) -> Path:
    """Write the weights and the network's Spec as one safetensors file; returns its path.

    `path` is the file, or the folder of model.safetensors. The keys are open_clip's, so that plain open_clip
    reads it: `open_clip.create_model(spec.name, pretrained=str(path),
    force_context_length=spec.context_length, force_quick_gelu=spec.quick_gelu)`; `export_open_clip` writes a
    folder that needs no such knowledge.
    """
    file = file_of(path)
    tensorfiles.write(file, model.state_dict(), {_METADATA: json.dumps(asdict(model.spec), sort_keys=True)})
    return file


def publish(model: GoalClip, folder: Path, card: Mapping[str, Any]) -> Path:
    """Write a finished model: its weights and card.json, which adds the file's sha256 and the network to
    `card`."""
    file = save(model, folder)
    content = {**card, "sha256": digest(file), "network": asdict(model.spec)}
    tensorfiles.write_text(folder / CARD, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return file


def load(
    path: Path | str, *, quick_gelu: bool | None = None, heads: tuple[int, int] | None = None
) -> GoalClip:
    """Read a network from a file of any known kind, or from a folder with model.safetensors; context as it is
    there.

    Known: this project's safetensors; state dicts (safetensors, or torch.save) in the layout of open_clip and
    OpenAI, of Hugging Face's CLIPModel (the GOAL authors' release among them) and of Long-CLIP. `quick_gelu`
    and `heads` (vision, text) say what foreign files cannot; see `layouts.spec_of_shapes` and
    `layouts.to_open_clip` for what is taken otherwise. Raises UserError, one line that names the file, for
    whatever does not fit.
    """
    file = file_of(path)
    tensors, metadata = tensorfiles.read(file)
    try:
        if _METADATA in metadata:
            return build(_spec(metadata[_METADATA]), tensors)
        return _foreign(tensors, heads, quick_gelu)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def from_huggingface(
    state_dict: Mapping[str, Tensor], *, heads: tuple[int, int] | None = None, quick_gelu: bool = True
) -> GoalClip:
    """The network of a Hugging Face CLIPModel's state dict; architecture and context from the shapes.

    heads: (vision, text) attention heads, which leave no trace in the shapes; None: those of open_clip's
    network with the same shapes, else max(2, width // 64). quick_gelu: the activation of OpenAI's weights and
    what descends from them; False for LAION's. Keys may carry wrappers' prefixes. Raises UserError naming
    missing and unexpected keys.
    """
    return _foreign(state_dict, heads, quick_gelu)


def to_huggingface(model: GoalClip) -> dict[str, Tensor]:
    """The weights in the layout of Hugging Face's CLIPModel, bit by bit what `from_huggingface` reads
    back."""
    return layouts.to_huggingface(
        {key: value.detach() for key, value in model.state_dict().items()}, model.spec
    )


def _foreign(state: Mapping[str, Tensor], heads: tuple[int, int] | None, quick_gelu: bool | None) -> GoalClip:
    tensors, implied = layouts.to_open_clip(state)
    spec = layouts.spec_of_shapes(tensors, heads, implied if quick_gelu is None else quick_gelu)
    return build(spec, tensors)


def build(spec: Spec, state: Mapping[str, Tensor]) -> GoalClip:
    """A network of `spec` with the tensors of `state` as its float32 weights.

    Raises UserError naming every missing, unexpected, misshapen or non-finite tensor.
    """
    with torch.device("meta"):
        model = GoalClip(spec)
    wanted = model.state_dict()
    layouts.check_names(state, wanted)
    weights = {}
    for key, empty in wanted.items():
        # Some releases keep the scale as one row.
        value = state[key].reshape(()) if key == "logit_scale" and state[key].numel() == 1 else state[key]
        if value.shape != empty.shape:
            raise UserError(f"{key} has shape {tuple(value.shape)}, the network wants {tuple(empty.shape)}")
        if not value.isfinite().all():
            raise UserError(f"{key} holds NaN or infinite values")
        weights[key] = value.float()
    model.load_state_dict(weights, assign=True)
    return model


def _spec(text: str) -> Spec:
    values = json.loads(text)
    if values.keys() != {field.name for field in fields(Spec)}:
        raise UserError("its network is described in the words of another version of this project")
    return Spec(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})


def file_of(path: Path | str) -> Path:
    """The weights file itself, or the one in a model's folder."""
    path = Path(path)
    return path if path.suffix or path.is_file() else path / FILE


def digest(path: Path | str) -> str:
    """sha256 of the weights file, as hex digits: the model's name in the record."""
    return tensorfiles.digest(file_of(path))
