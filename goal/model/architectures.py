"""Which networks the project runs: open_clip's names as Specs, and the others refused with the reason."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from open_clip.factory import get_model_config, list_models
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import list_pretrained

from goal.config import drawn
from goal.errors import UserError
from goal.model.network import Spec

SCENES = drawn.NETWORK
CUSTOM = "custom"
# The small network of the embedded `scenes` data.
_SCENES_SPEC = Spec(
    name=SCENES,
    image_size=96,
    patch_size=12,
    embed_dim=128,
    vision_width=128,
    vision_layers=4,
    vision_heads=4,
    vision_mlp=512,
    text_width=128,
    text_layers=3,
    text_heads=4,
    text_mlp=512,
    vocab_size=49408,
    context_length=77,
    quick_gelu=False,
)
VOCABULARY = 49408
# What can be read from the shapes of a network's weights; heads, activation and preprocessing cannot.
SHAPES = (
    "image_size",
    "patch_size",
    "embed_dim",
    "vision_width",
    "vision_layers",
    "vision_mlp",
    "text_width",
    "text_layers",
    "text_mlp",
    "vocab_size",
)
_TOP = {"embed_dim", "quick_gelu"}
_VISION = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def known(name: str) -> bool:
    """Whether the name means a network, supported or not."""
    return name == SCENES or name in list_models()


def spec_of(name: str) -> Spec:
    """The network behind an open_clip name or scenes-vit.

    Raises UserError for names that are unknown or whose network this project does not run, saying why.
    """
    if name == SCENES:
        return _SCENES_SPEC
    config = get_model_config(name) if name in list_models() else None
    if config is None:
        raise UserError(
            f"model.name {name}: neither {SCENES} nor a name that open_clip knows (open_clip.list_models())"
        )
    reason = refusal(config)
    if reason:
        raise UserError(f"model.name {name}: not supported: {reason}; a ViT CLIP such as ViT-B-16 is")
    return of_config(name, config)


def of_config(name: str, config: dict[str, Any]) -> Spec:
    """The network of an open_clip configuration that is not refused (`refusal`)."""
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    return Spec(
        name=name,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        embed_dim=config["embed_dim"],
        vision_width=vision.width,
        vision_layers=vision.layers,
        vision_heads=vision.width // vision.head_width,
        vision_mlp=int(vision.width * vision.mlp_ratio),
        text_width=text.width,
        text_layers=text.layers,
        text_heads=text.heads,
        text_mlp=int(text.width * text.mlp_ratio),
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        quick_gelu=config.get("quick_gelu", False),
    )


def refusal(config: dict[str, Any]) -> str:
    """Why an open_clip configuration is not a CLIP of two plain transformers with CLIP's tokens, or ""."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config:
        return "CoCa's text tower has a class token and a decoder"
    if "init_logit_bias" in config:
        return "SigLIP's loss and text tower are others"
    if "timm_model_name" in vision:
        return f"its image tower is timm's {vision['timm_model_name']}"
    if isinstance(vision.get("layers"), list):
        return "its image tower is a ResNet, which has no patch tokens"
    if "hf_model_name" in text:
        return f"its text tower is Hugging Face's {text['hf_model_name']}"
    if "hf_tokenizer_name" in text or text.get("vocab_size", VOCABULARY) != VOCABULARY:
        return "its tokenizer is not CLIP's"
    odd = [key for key in sorted(config.keys() - {"vision_cfg", "text_cfg"} - _TOP) if config[key]]
    odd += _odd("vision_cfg", vision, _VISION, asdict(CLIPVisionCfg()))
    odd += _odd("text_cfg", text, _TEXT, asdict(CLIPTextCfg()))
    return f"it sets {', '.join(odd)}" if odd else ""


def _odd(section: str, given: dict[str, Any], known: set[str], defaults: dict[str, Any]) -> list[str]:
    return [f"{section}.{key}" for key in sorted(given.keys() - known) if given[key] != defaults.get(key)]


def supported() -> list[tuple[str, str]]:
    """(name, tag) of all pretrained weights of open_clip that `goal.clip.load` takes."""
    ours = set(names())
    return [(name, tag) for name, tag in list_pretrained() if name in ours]


def match(shapes: Spec) -> Spec | None:
    """The known network with these shapes, or None; the plain name goes before its `-quickgelu` twin."""
    return next((spec for spec in map(spec_of, names()) if not differences(shapes, spec)), None)


def names() -> list[str]:
    """The networks that the project runs."""
    return [SCENES, *(name for name in sorted(list_models()) if not refusal(get_model_config(name)))]


def differences(found: Spec, wanted: Spec, fields: Sequence[str] = SHAPES) -> list[str]:
    """What distinguishes two networks in some fields, in words."""
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in fields]
    return [f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if ours != theirs]
