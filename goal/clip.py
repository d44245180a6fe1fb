"""CLIP for the rest of the project: load a network by name or file, prepare its pictures."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from PIL import Image
from torch import Tensor, nn

from goal import architectures, positions, weights
from goal.architectures import supported
from goal.boxes import View
from goal.errors import UserError
from goal.network import Features, GoalClip, Spec

__all__ = ["Features", "GoalClip", "Preprocess", "Spec", "load", "preprocess", "supported"]

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
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

    path_or_name: a weights file or model folder; or scenes-vit or an open_clip name, whose weights
    `pretrained` names (`embedded`, a tag, or a file), which may also follow the name: "ViT-B-16/openai".
    keep: first rows of the table that are not stretched. view: how pictures become square, center_crop unless
    the weights say otherwise. Raises UserError in one line for what is unknown, unsupported, cannot be
    downloaded or does not fit.
    """
    name, slash, tag = str(path_or_name).partition("/")
    if Path(path_or_name).exists():
        model = weights.load(path_or_name)
    elif pretrained is not None:
        model = _named(str(path_or_name), pretrained)
    elif slash and "." not in Path(path_or_name).suffix:
        model = _named(name, tag)
    else:
        raise UserError(
            f"{path_or_name}: no such file, and no weights named: give name/tag, as in ViT-B-16/openai"
        )
    if view is not None:
        model.spec = replace(model.spec, view=view)
    return model if context_length is None else _with_context(model, context_length, keep, str(path_or_name))


def _named(name: str, pretrained: str) -> GoalClip:
    spec = architectures.spec_of(name)
    if pretrained == EMBEDDED:
        return _embedded(spec)
    tags = list_pretrained_tags_by_model(name)
    if get_pretrained_cfg(name, pretrained):
        return _tagged(spec, pretrained)
    if not Path(pretrained).exists():
        known = f"a tag of {name} ({', '.join(tags)})" if tags else "a tag"
        raise UserError(f"model.pretrained {pretrained}: neither a file nor {known}")
    return _matched(weights.load(pretrained), spec, pretrained)


def _embedded(spec: Spec) -> GoalClip:
    if spec.name != architectures.SCENES:
        raise UserError(f"model.pretrained {EMBEDDED}: only {architectures.SCENES} comes with the package")
    from goal import embedded

    return embedded.load()


def _tagged(spec: Spec, tag: str) -> GoalClip:
    known = get_pretrained_cfg(spec.name, tag)
    # open_clip only warns when a name's activation is not the one its weights were trained with (OpenAI's:
    # QuickGELU).
    spec = replace(
        spec, quick_gelu=known.get("quick_gelu", False), mean=tuple(known["mean"]), std=tuple(known["std"])
    )
    try:
        file = download_pretrained(known)
    except (OSError, RuntimeError) as error:
        source = f"https://huggingface.co/{known['hf_hub']}" if known["hf_hub"] else known["url"]
        name = f"{spec.name.removesuffix('-quickgelu')}-quickgelu" if spec.quick_gelu else spec.name
        raise UserError(
            f"model.pretrained {tag}: the download failed; fetch the weights from {source} and set"
            f" model.pretrained to the file and model.name to {name} ({' '.join(str(error).split())[:160]})"
        ) from error
    return _matched(weights.load(file), spec, file)


def _matched(model: GoalClip, spec: Spec, source: Path | str) -> GoalClip:
    """The network of `source` under the name, activation and preprocessing of `spec`."""
    odd = architectures.differences(model.spec, spec)
    if odd:
        raise UserError(f"{source}: not a {spec.name}: {', '.join(odd)}")
    wanted = replace(spec, context_length=model.spec.context_length)
    return model if wanted == model.spec else weights.build(wanted, model.state_dict())


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
        side = self.spec.image_size
        view = View(image.size, side, self.spec.view)
        left, top = view.offset
        square = image.resize(view.resized, Image.Resampling.BICUBIC).crop(
            (left, top, left + side, top + side)
        )
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float().div_(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.spec.mean, self.spec.std))
        return pixels.sub_(mean).div_(std)


def preprocess(spec: Spec) -> Preprocess:
    """The way from a picture to the tensor that `encode_images` takes."""
    return Preprocess(spec)
