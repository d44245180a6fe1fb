"""Load a CLIP network by name or file, and preprocess its pictures."""

import logging
import math
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
from goal.model import architectures, configs, embedded, sources
from goal.model.architectures import supported
from goal.model.network import Features, GoalClip, Spec, normalised

__all__ = ["Features", "GoalClip", "Preprocess", "Spec", "load", "preprocess", "supported"]

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
_REASON_LENGTH = 160
# Rows of CLIP's own position table; a longer one is already stretched and is not changed again.
_ORIGINAL_CONTEXT = 77
# Pixels: a picture that would be larger after the resize, and before the crop, is so long and thin that it
# is cropped first. Other pictures keep open_clip's order, and with it the bits of its transform.
_LARGEST_RESIZED = 2**22


def load(
    path_or_name: Path | str,
    context_length: int | None = 248,
    *,
    pretrained: str | None = None,
    keep: int = 20,
    view: str | None = None,
) -> GoalClip:
    """Load a network and stretch or cut its position table to `context_length` tokens (None: unchanged).

    path_or_name: a weights file or model folder; or a network (scenes-vit or a name of open_clip) whose
    weights `pretrained` names (`embedded`, a tag, a file, a repository of Hugging Face's hub); or both in
    one, as in "ViT-B-16/openai"; or such a repository, as in "hf-hub:openai/clip-vit-base-patch16".
    keep: first rows of the table that are not stretched. view: how pictures become square; None: as the
    weights say (weights.load). Only a table of up to 77 rows can be stretched or cut. Raises UserError for
    a network that is unknown, unsupported or does not fit, Unavailable for a failed download.
    """
    source = str(path_or_name)
    name, _, tag = source.partition("/")
    if pretrained is not None:
        model = _named(source, pretrained)
    elif Path(source).exists():
        model = weights.load(source)
    elif tag and architectures.known(name):
        model = _named(name, tag)
    elif sources.repository(source):
        model = weights.load(sources.fetch(source))
    else:
        raise UserError(f"{source}: neither a file nor a network with its weights, as in ViT-B-16/openai")
    if view not in (None, model.spec.view):
        logger.warning("%s: pictures become square by %s instead of %s", source, view, model.spec.view)
        model.spec = replace(model.spec, view=view)
    return model if context_length is None else _with_context(model, context_length, keep, source)


def _named(name: str, pretrained: str) -> GoalClip:
    spec = architectures.spec_of(name)
    if pretrained == EMBEDDED and spec.name == architectures.SCENES:
        return embedded.load()
    if pretrained == EMBEDDED:
        raise UserError(
            f"model.pretrained {EMBEDDED}: only {architectures.SCENES} comes with the package;"
            " set model.name to it"
        )
    if get_pretrained_cfg(name, pretrained):
        return _tagged(spec, pretrained)
    file = Path(pretrained)
    if not file.exists():
        if not sources.repository(pretrained):
            tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
            raise UserError(
                f"model.pretrained {pretrained}: neither a file nor a tag of {name} (tags: {tags})"
            )
        file = sources.fetch(pretrained)
    model = _checked(weights.load(file, quick_gelu=spec.quick_gelu or None), spec, pretrained)
    if spec.quick_gelu and not model.spec.quick_gelu:
        plain = name.removesuffix("-quickgelu")
        raise UserError(f"{pretrained}: has the activation GELU; set model.name to {plain}")
    return model


def _tagged(spec: Spec, tag: str) -> GoalClip:
    config = get_pretrained_cfg(spec.name, tag)
    try:
        file = download_pretrained(config)
    except (OSError, RuntimeError) as error:
        gelu = "-quickgelu" if config.get("quick_gelu") else ""
        name = spec.name.removesuffix("-quickgelu") + gelu
        reason = " ".join(str(error).split())[:_REASON_LENGTH]
        raise Unavailable(
            f"model.pretrained {tag}: cannot be downloaded; download {_address(config)}, then set"
            f" model.pretrained to the folder and model.name to {name} ({reason})"
        ) from error
    # The tag sets the activation: OpenAI's weights need QuickGELU, and open_clip only warns about a mismatch.
    pictures = configs.open_clip_pictures(f"{spec.name}/{tag}", config).preprocessing
    said = configs.Said(
        (spec.vision_heads, spec.text_heads), config.get("quick_gelu", False), preprocessing=pictures
    )
    return _checked(weights.load(file, said=said), spec, file)


def _address(config: dict[str, Any]) -> str:
    """What to download by hand for the same model as the tag's: the weights and what belongs to them."""
    repository, file = config["hf_hub"].rsplit("/", 1)
    names = file or f"{HF_SAFE_WEIGHTS_NAME} or {HF_WEIGHTS_NAME}"
    return f"{sources.OPEN_CLIP} and {names} from https://huggingface.co/{repository} into one folder"


def _checked(model: GoalClip, spec: Spec, source: Path | str) -> GoalClip:
    fields = (*architectures.SHAPES, "vision_heads", "text_heads")
    differences = architectures.differences(model.spec, spec, fields)
    if differences:
        raise UserError(f"{source}: not a {spec.name}: {', '.join(differences)}")
    return model


def _with_context(model: GoalClip, length: int, keep: int, source: str) -> GoalClip:
    rows = model.spec.context_length
    if length == rows:
        return model
    if rows > _ORIGINAL_CONTEXT:
        raise UserError(
            f"{source}: its position table of {rows} rows is already stretched;"
            f" set model.context_length to {rows}"
        )
    table = positions.stretch(model.positional_embedding.detach(), length, keep)
    model.positional_embedding = nn.Parameter(table)
    model.context_length = length
    model.spec = replace(model.spec, context_length=length)
    return model


@dataclass(frozen=True)
class Preprocess:
    """Turns pictures into what the network sees; can be pickled, so that loader processes can use it."""

    spec: Spec

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 S S"]:
        """Bicubic resize, crop (goal.boxes.View), scale to 0..1, normalise; equal to open_clip's transform.

        Only for pictures so thin that the resize alone would take over 16 MB, the last bits may differ.
        image: RGB, image frame. Returns the view (S pixels wide and high), channels first.
        """
        return normalised(self.view(image)[None], self.spec)[0]

    def view(self, image: Image.Image) -> UInt8[Tensor, "3 S S"]:
        """The resized and cropped picture as bytes; `GoalClip.image_features` normalises them itself."""
        return torch.from_numpy(np.array(self.square(image))).permute(2, 0, 1).contiguous()

    def square(self, image: Image.Image) -> Image.Image:
        """The resized and cropped picture (S, S); a picture that is (S, S) already stays unchanged."""
        side = self.spec.image_size
        view = View(image.size, side, self.spec.view)
        if math.prod(view.resized) > _LARGEST_RESIZED:
            return _thin(image, view)
        left, top = view.offset
        return image.resize(view.resized, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _thin(image: Image.Image, view: View) -> Image.Image:
    """The view (S, S) of a long, thin picture: its part of the picture is cut out first, then resized."""
    starts, ends, cut = [], [], []
    for whole, resized, offset in zip(image.size, view.resized, view.offset, strict=True):
        scale = whole / resized
        start, end = offset * scale, (offset + view.view_size) * scale
        # The bicubic filter reads two pixels on each side, of the picture or of the view: the larger ones.
        margin = 2 * max(scale, 1) + 1
        first, last = max(math.floor(start - margin), 0), min(math.ceil(end + margin), whole)
        starts.append(start - first)
        ends.append(min(end, last) - first)
        cut.append((first, last))
    (left, right), (top, bottom) = cut
    part = image.crop((left, top, right, bottom))
    return part.resize((view.view_size, view.view_size), Image.Resampling.BICUBIC, (*starts, *ends))


def preprocess(spec: Spec) -> Preprocess:
    """The transform from a picture to the tensor that `encode_images` takes."""
    return Preprocess(spec)
