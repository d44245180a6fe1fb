"""What weights of other projects need and their shapes do not show, from the configurations beside them.

Hugging Face's config.json, processor_config.json and preprocessor_config.json, and open_clip's
open_clip_config.json. What this project's network or preprocessing cannot be is refused by name.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from goal.errors import UserError
from goal.model import architectures, sources
from goal.model.network import OPENAI_MEAN, OPENAI_STD, Spec

logger = logging.getLogger(__name__)

# The fields of a CLIPConfig that shapes show too, by the field of Spec.
_SHOWN = {
    "vision_config": {
        "hidden_size": "vision_width",
        "intermediate_size": "vision_mlp",
        "num_hidden_layers": "vision_layers",
        "image_size": "image_size",
        "patch_size": "patch_size",
    },
    "text_config": {
        "hidden_size": "text_width",
        "intermediate_size": "text_mlp",
        "num_hidden_layers": "text_layers",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "context_length",
    },
}
# The others, with transformers' defaults, which its files may leave out.
_HIDDEN = {
    "vision_config": {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "text_config": {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
# The values that this network can have.
_ONLY = {
    "hidden_act": ("quick_gelu", "gelu"),
    "layer_norm_eps": (1e-5,),
    "num_channels": (3,),
    "interpolation_keep_length": (20,),
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_BICUBIC = 3  # of Pillow


class Preprocessing(NamedTuple):
    """The fields of Spec by which a picture becomes what the network sees."""

    view: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Pictures(NamedTuple):
    """A preprocessing, where it is said, and the shapes said with it."""

    where: str = ""
    preprocessing: Preprocessing | None = None
    shapes: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class Said:
    """What is known of weights besides their tensors; None: nothing says it."""

    heads: tuple[int, int] | None = None  # vision, text
    quick_gelu: bool | None = None
    preprocessing: Preprocessing | None = None
    # (where it is said, field of Spec, value) that the shapes of the weights must show too.
    shapes: tuple[tuple[str, str, int], ...] = ()

    def check(self, spec: Spec) -> None:
        """Raise UserError where the weights have another shape than is said."""
        for where, field, value in self.shapes:
            if getattr(spec, field) != value:
                raise UserError(f"{where} says {field} {value}, the weights have {getattr(spec, field)}")


def beside(file: Path, huggingface: bool) -> Said:
    """What the configurations in the folder of a weights file say.

    huggingface: whether its keys are those of CLIPModel: the network is then as config.json says, else as
    open_clip_config.json says; so is the preprocessing, if its own library's file is there. Raises UserError
    for a file that cannot be read, and for what this project cannot be.
    """

    def read(name: str, reader: Callable[[str, Any], Any]) -> Any:
        path = file.with_name(name)
        if not path.exists():
            return None
        try:
            return reader(str(path), json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise UserError(f"{path} beside it is not of a CLIP ({error!r}); fix or remove it") from error

    network = read(sources.NETWORK, _huggingface) if huggingface else read(sources.OPEN_CLIP, _open_clip)
    # transformers 5 writes the first, and takes it before the second.
    theirs = read(sources.PROCESSOR, _processor) or read(sources.IMAGE_PROCESSOR, _image_processor)
    known = [theirs, read(sources.OPEN_CLIP, _preprocess_cfg)]
    first, *others = [one for one in (known if huggingface else known[::-1]) if one] or [Pictures()]
    for other in others:
        if other.preprocessing != first.preprocessing:
            logger.warning(
                "%s: pictures are prepared as %s says, by %s; %s says %s",
                *(file, first.where, first.preprocessing, other.where, other.preprocessing),
            )
    network = network or Said()
    shapes = (*network.shapes, *first.shapes)
    return Said(network.heads, network.quick_gelu, first.preprocessing, shapes)


def _huggingface(where: str, config: Mapping[str, Any]) -> Said:
    """A CLIPConfig, as transformers reads it: `text_config_dict` wins over `text_config`."""
    kind = config.get("model_type", "clip")
    if kind not in ("clip", "longclip"):
        raise UserError(f"{where}: model_type {kind}: only clip and longclip can be read")
    towers, shapes = {}, []
    for name, shown in _SHOWN.items():
        given, over = config.get(name), config.get(f"{name}_dict")
        if given is None and over is None:
            raise UserError(f"{where} beside it is not of a CLIP: no {name}; fix or remove it")
        tower = towers[name] = _HIDDEN[name] | (given or {})
        # Over all of them: transformers completes it with the defaults first.
        tower |= {} if over is None else _HIDDEN[name] | over
        last = tower.get("vocab_size", architectures.VOCABULARY) - 1
        # The network pools at the largest id of a text; transformers does so too where this says 2.
        _refuse_odd(f"{where}: {name}", tower, _ONLY | {"eos_token_id": (2, last)})
        shapes += [
            (f"{where}: {name}", ours, _one(tower[field]))
            for field, ours in shown.items()
            if tower.get(field) is not None
        ]
    if config.get("projection_dim") is not None:
        shapes.append((where, "embed_dim", config["projection_dim"]))
    activations = {name: tower["hidden_act"] for name, tower in towers.items()}
    if len(set(activations.values())) > 1:
        each = ", ".join(f"{name} {value}" for name, value in activations.items())
        raise UserError(f"{where}: {each}: this network has the same activation in both towers")
    vision, text = (int(tower["num_attention_heads"]) for tower in towers.values())
    return Said((vision, text), set(activations.values()) == {"quick_gelu"}, shapes=tuple(shapes))


def _one(value: Any) -> Any:
    """A side that is written twice, as in [224, 224], once."""
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def _open_clip(where: str, content: Mapping[str, Any]) -> Said:
    config = content.get("model_cfg", content)
    reason = architectures.refusal(config)
    if reason:
        raise UserError(f"{where}: not supported: {reason}")
    spec = architectures.of_config(where, config)
    fields = (*architectures.SHAPES, "context_length")
    shapes = tuple((where, field, getattr(spec, field)) for field in fields)
    return Said((spec.vision_heads, spec.text_heads), spec.quick_gelu, shapes=shapes)


def _preprocess_cfg(where: str, content: Mapping[str, Any]) -> Pictures | None:
    given = content.get("preprocess_cfg")
    return open_clip_pictures(where, given) if given else None


def open_clip_pictures(where: str, given: Mapping[str, Any]) -> Pictures:
    """The preprocess_cfg of open_clip, or what it knows of a tag; None and what is not there is its default.

    Raises UserError for what this project cannot do.
    """
    config = {key: value for key, value in given.items() if value is not None}
    # At inference `random` is bicubic.
    only = {"mode": ("RGB",), "interpolation": ("bicubic", "random"), "resize_mode": ("shortest", "squash")}
    _refuse_odd(where, config, only)
    preprocessing = Preprocessing(
        "squash" if config.get("resize_mode") == "squash" else "center_crop",
        _channels(where, "mean", config.get("mean", OPENAI_MEAN)),
        _channels(where, "std", config.get("std", OPENAI_STD)),
    )
    shapes = ((where, "image_size", _one(config["size"])),) if "size" in config else ()
    return Pictures(where, preprocessing, shapes)


def _processor(where: str, content: Mapping[str, Any]) -> Pictures | None:
    nested = content.get("image_processor")
    return _image_processor(where, nested) if nested else None


def _image_processor(where: str, content: Mapping[str, Any]) -> Pictures:
    """The settings of transformers' CLIPImageProcessor or CLIPFeatureExtractor, in any form it has written.

    Raises UserError for what this project cannot do.
    """
    kind = content.get("image_processor_type") or content.get("feature_extractor_type") or "CLIP"
    if not kind.startswith("CLIP"):
        raise UserError(f"{where}: {kind}: only CLIP's image processors can be read")
    only = {key: (False,) for key in content if key.startswith("do_") and key not in _STEPS}
    only |= {"do_resize": (True,), "resample": (_BICUBIC,), "use_square_size": (False,)}
    _refuse_odd(where, content, only)
    view, side = _size(where, content.get("size", 224))
    if content.get("do_center_crop", True):
        crop = content.get("crop_size", 224)
        _, cropped = _size(where, [crop, crop] if isinstance(crop, int) else crop)
        if cropped != side:
            raise UserError(
                f"{where}: size {side}, crop_size {cropped}: this project can only have equal ones"
            )
    elif view == "center_crop":
        raise UserError(f"{where}: do_center_crop false and shortest_edge: the pictures would not be square")
    mean = _channels(where, "image_mean", content.get("image_mean", OPENAI_MEAN))
    std = _channels(where, "image_std", content.get("image_std", OPENAI_STD))
    if not content.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    # The views of this project go from 0 to 1; another scale is one of mean and deviation.
    scale = 255.0 * content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 255.0
    if not math.isclose(scale, 1.0):
        mean, std = (tuple(value / scale for value in values) for values in (mean, std))
    return Pictures(where, Preprocessing(view, mean, std), ((where, "image_size", side),))


def _refuse_odd(where: str, content: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise UserError for a field that is there with none of the values that this project can have."""
    for field, values in only.items():
        if field in content and content[field] not in (*values, None):
            wanted = " or ".join(str(value) for value in values)
            raise UserError(f"{where}: {field} {content[field]}: this project can only have {wanted}")


def _size(where: str, size: Any) -> tuple[str, int]:
    """(view, side in pixels), as CLIP's processor reads it: an int is the shorter edge."""
    if isinstance(size, int):
        return "center_crop", size
    given = dict(zip(("height", "width"), size, strict=True)) if isinstance(size, list) else size
    sides = {name: value for name, value in given.items() if value is not None}
    if sides.keys() == {"shortest_edge"}:
        return "center_crop", sides["shortest_edge"]
    if sides.keys() == {"height", "width"} and sides["height"] == sides["width"]:
        return "squash", sides["height"]
    raise UserError(f"{where}: size {sides}: this project can only have a shortest_edge or a square")


def _channels(where: str, name: str, values: Any) -> tuple[float, ...]:
    """Red, green, blue; one number stands for all three."""
    given = [values] * 3 if isinstance(values, int | float) else list(values)
    lowest = 0 if name.endswith("std") else -math.inf
    if len(given) != 3 or not all(lowest < value < math.inf for value in given):
        raise UserError(f"{where}: {name} {values}: three finite numbers are needed, over 0 for std")
    return tuple(map(float, given))
