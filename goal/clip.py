"""CLIP for the rest of the project: load a network by name or file, prepare its pictures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from PIL import Image
from torch import Tensor, nn

from goal import positions, weights
from goal.boxes import View
from goal.errors import Unavailable, UserError
from goal.model import architectures, embedded
from goal.model.architectures import supported
from goal.model.network import Features, GoalClip, Spec, normalised

__all__ = ["Features", "GoalClip", "Preprocess", "Spec", "load", "preprocess", "supported"]

EMBEDDED = "embedded"
_REASON_LENGTH = 160
# Rows of CLIP's own table; a longer one was stretched already and is not stretched or cut again.
_ORIGINAL_CONTEXT = 77


def load(
    path_or_name: Path | str,
    context_length: int | None = 248,
    *,
    pretrained: str | None = None,
    keep: int = 20,
    view: str | None = None,
) -> GoalClip:
    """Load a network, its position table brought to `context_length` tokens (None: as it is).

    path_or_name: a weights file or model folder; or a network, scenes-vit or one of open_clip's, whose
    weights `pretrained` names (`embedded`, a tag or a file); or both as one, "ViT-B-16/openai". keep: first
    rows of the table that are not stretched. view: how pictures become square, None: as the weights say, else
    center_crop. A table of 77 rows can be stretched or, its first rows taken, be shorter; one that was
    stretched can not. Raises UserError in one line for what is unknown, unsupported or does not fit,
    Unavailable for a failed download, which says what to fetch.
    """
    source = str(path_or_name)
    name, _, tag = source.partition("/")
    if pretrained is not None:
        model = _named(source, pretrained)
    elif Path(source).exists():
        model = weights.load(source)
    elif tag and architectures.known(name):
        model = _named(name, tag)
    else:
        raise UserError(f"{source}: no such file, and not a network with its weights, as in ViT-B-16/openai")
    if view is not None:
        model.spec = replace(model.spec, view=view)
    return model if context_length is None else _with_context(model, context_length, keep, source)


def _named(name: str, pretrained: str) -> GoalClip:
    spec = architectures.spec_of(name)
    if pretrained == EMBEDDED:
        return _embedded(spec)
    if get_pretrained_cfg(name, pretrained):
        return _tagged(spec, pretrained)
    if not Path(pretrained).exists():
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"model.pretrained {pretrained}: neither a file nor a tag of {name} (these: {tags})")
    return _checked(weights.load(pretrained, quick_gelu=spec.quick_gelu or None), spec, pretrained)


def _embedded(spec: Spec) -> GoalClip:
    if spec.name != architectures.SCENES:
        raise UserError(f"model.pretrained {EMBEDDED}: only {architectures.SCENES} comes with the package")
    return embedded.load()


def _tagged(spec: Spec, tag: str) -> GoalClip:
    known = get_pretrained_cfg(spec.name, tag)
    try:
        file = download_pretrained(known)
    except (OSError, RuntimeError) as error:
        gelu = "-quickgelu" if known.get("quick_gelu") else ""
        name = spec.name.removesuffix("-quickgelu") + gelu
        reason = " ".join(str(error).split())[:_REASON_LENGTH]
        raise Unavailable(
            f"model.pretrained {tag}: not downloaded; fetch {_address(known)}, then set model.pretrained to"
            f" the file and model.name to {name} ({reason})"
        ) from error
    # The tag decides on the activation: OpenAI's weights have QuickGELU, of which open_clip only warns.
    model = _checked(weights.load(file, quick_gelu=known.get("quick_gelu", False)), spec, file)
    model.spec = replace(model.spec, mean=tuple(known["mean"]), std=tuple(known["std"]))
    return model


def _address(known: dict[str, Any]) -> str:
    """Where a person finds the file of a tag."""
    if not known["hf_hub"]:
        return known["url"]
    repository, file = known["hf_hub"].rsplit("/", 1)
    names = file or f"{HF_SAFE_WEIGHTS_NAME} or {HF_WEIGHTS_NAME}"
    return f"{names} from https://huggingface.co/{repository}"


def _checked(model: GoalClip, spec: Spec, source: Path | str) -> GoalClip:
    odd = architectures.differences(model.spec, spec)
    if odd:
        raise UserError(f"{source}: not a {spec.name}: {', '.join(odd)}")
    return model


def _with_context(model: GoalClip, length: int, keep: int, source: str) -> GoalClip:
    rows = model.spec.context_length
    if length == rows:
        return model
    if rows > _ORIGINAL_CONTEXT:
        raise UserError(
            f"{source}: was made for {rows} tokens and is not stretched or cut again:"
            f" set model.context_length to {rows}"
        )
    table = positions.stretch(model.positional_embedding.detach(), length, keep)
    model.positional_embedding = nn.Parameter(table)
    model.context_length = length
    model.spec = replace(model.spec, context_length=length)
    return model


@dataclass(frozen=True)
class Preprocess:
    """A picture as its network sees it; a plain object, so that loader processes can be handed it."""

    spec: Spec

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """Bicubic resize, crop (goal.boxes.View), scale to 0..1, normalise; equal to open_clip's own
        transform.

        image: RGB, image frame. Returns the view, channels first.
        """
        return normalised(self.view(image)[None], self.spec)[0]

    def view(self, image: Image.Image) -> UInt8[Tensor, "3 S S"]:
        """The resized and cropped picture as bytes; `image_features` normalises such views itself."""
        return torch.from_numpy(np.array(self.square(image))).permute(2, 0, 1).contiguous()

    def square(self, image: Image.Image) -> Image.Image:
        """The resized and cropped picture (S, S); of such a square it is the square itself."""
        side = self.spec.image_size
        view = View(image.size, side, self.spec.view)
        left, top = view.offset
        return image.resize(view.resized, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def preprocess(spec: Spec) -> Preprocess:
    """The way from a picture to the tensor that `encode_images` takes."""
    return Preprocess(spec)
