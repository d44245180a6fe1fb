"""Read and write weights: safetensors that describe their network, and other projects' checkpoints."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goal.config import paths
from goal.errors import UserError
from goal.model import architectures, configs, layouts, sources
from goal.model.configs import Said
from goal.model.network import GoalClip, Spec
from goal.model.sources import file_of
from goal.runtime import files, tensorfiles

logger = logging.getLogger(__name__)

_METADATA = "goal"


def save(model: GoalClip, path: Path | str) -> Path:
    """Write the weights and the network's Spec as one safetensors file; returns its path.

    `path` is the file, or the folder of model.safetensors. open_clip reads the file too:
    `open_clip.create_model(spec.name, pretrained=path, force_context_length=spec.context_length,
    force_quick_gelu=spec.quick_gelu)`; the folders that goal.exports writes need no such arguments.
    """
    file = sources.default_file(Path(path))
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
    path: Path | str,
    *,
    heads: tuple[int, int] | None = None,
    quick_gelu: bool | None = None,
    said: Said | None = None,
) -> GoalClip:
    """Read a network from a weights file or a folder with one (`file_of`); its context length is kept.

    Reads this project's safetensors, and state dicts (safetensors or torch.save, also in shards) in the
    layout of open_clip and OpenAI, of Hugging Face's CLIPModel (such as the GOAL authors' release) and of
    Long-CLIP. What shapes do not show is as `said`, or else as the configurations beside the file say
    (goal.model.configs). Where they do not, heads (vision, text) and quick_gelu are as given here, and the
    rest is assumed, with one warning. Raises UserError that names the file and what is wrong with it.
    """
    file = file_of(path)
    tensors, metadata = {}, {}
    for shard in sources.shards(file):
        part, metadata = tensorfiles.read(shard)
        tensors |= part
    try:
        if _METADATA in metadata:
            return build(_spec(metadata[_METADATA]), tensors)
        known = configs.beside(file, layouts.is_huggingface(tensors)) if said is None else said
        gelu = quick_gelu if known.quick_gelu is None else known.quick_gelu
        model, assumed = _foreign(tensors, replace(known, heads=known.heads or heads, quick_gelu=gelu))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if assumed:
        logger.warning(
            "%s: assuming %s: nothing beside it says so; put the %s or %s of these weights there",
            *(file, ", ".join(assumed), sources.OPEN_CLIP, sources.IMAGE_PROCESSOR),
        )
    return model


def from_huggingface(
    state_dict: Mapping[str, Tensor], *, heads: tuple[int, int] | None = None, quick_gelu: bool = True
) -> GoalClip:
    """The network of a Hugging Face CLIPModel's state dict; architecture and context from the shapes.

    heads: attention heads (vision, text), which the shapes do not show; None: those of open_clip's network
    with the same shapes, else max(2, width // 64). quick_gelu: True for OpenAI's weights and those fine-tuned
    from them, False for LAION's. Keys may have the prefixes of wrappers such as DDP.
    Raises UserError naming every missing and unexpected key.
    """
    return _foreign(state_dict, Said(heads, quick_gelu))[0]


def to_huggingface(model: GoalClip) -> dict[str, Tensor]:
    """The weights in the layout of Hugging Face's CLIPModel; `from_huggingface` restores the same bits."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    return layouts.to_huggingface(state, model.spec)


def _foreign(state: Mapping[str, Tensor], said: Said) -> tuple[GoalClip, list[str]]:
    """The network of a state dict of any layout, and what had to be assumed of it, in words."""
    tensors, implied = layouts.to_open_clip(state)
    assumed = []
    gelu = implied if said.quick_gelu is None else said.quick_gelu
    if gelu is None:
        gelu = layouts.is_huggingface(state)
        assumed.append("QuickGELU" if gelu else "GELU (model.name with -quickgelu: QuickGELU)")
    spec = layouts.spec_of_shapes(tensors, said.heads, gelu)
    said.check(spec)
    if said.heads is None and spec.name == architectures.CUSTOM:
        assumed.append(f"{spec.vision_heads} and {spec.text_heads} heads")
    if said.preprocessing is None:
        assumed.append(f"{spec.view} and OpenAI's mean and deviation")
    else:
        spec = replace(spec, **said.preprocessing._asdict())
    return build(spec, tensors), assumed


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


def digest(path: Path | str) -> str:
    """sha256 of the weights in hex, of shards of all of theirs: identifies the model in MLflow and caches."""
    each = [files.digest(shard) for shard in sources.shards(file_of(path))]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()
