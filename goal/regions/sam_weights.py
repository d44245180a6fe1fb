"""SAM with weights: Meta's checkpoints, fetched once and checked, or a file of the same layout."""

from collections.abc import Callable
from pathlib import Path

from goal import config
from goal.config import paths
from goal.errors import UserError
from goal.runtime import download, tensorfiles
from goal.runtime.download import Remote

try:
    from segment_anything import sam_model_registry
    from segment_anything.modeling import Sam
except ModuleNotFoundError as error:
    raise UserError("regions.sources: sam needs a package: pip install 'goal-clip[sam]'") from error

_META = "https://dl.fbaipublicfiles.com/segment_anything"
# The hex in a name begins the file's md5.
CHECKPOINTS = {
    "vit_h": Remote(
        url=f"{_META}/sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    "vit_l": Remote(
        url=f"{_META}/sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_b": Remote(
        url=f"{_META}/sam_vit_b_01ec64.pth",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
}
# Width of the image encoder: tells the sizes apart.
WIDTHS = {1280: "vit_h", 1024: "vit_l", 768: "vit_b"}
_WIDTH_KEY = "image_encoder.patch_embed.proj.bias"


def file(params: config.Sam) -> Path:
    """The file of the weights: params.checkpoint, or Meta's, fetched to downloads/sam once."""
    if params.checkpoint:
        return Path(params.checkpoint)
    (path,) = download.fetch([CHECKPOINTS[params.model]], paths.downloads("sam"), "SAM's weights")
    return path


def load(params: config.Sam) -> Sam:
    """SAM of params.model with the weights of params.checkpoint."""
    return fill(sam_model_registry[params.model], Path(params.checkpoint), params.model)


def fill(build: Callable[[], Sam], path: Path, name: str) -> Sam:
    """The network that `build` makes, with the weights in `path`, ready to propose.

    name: what params call this size. Raises UserError for a file that is missing, damaged, not SAM's or of
    another size.
    """
    weights, _ = tensorfiles.read(path)
    if _WIDTH_KEY not in weights:
        raise UserError(f"{path}: not SAM's weights (no {_WIDTH_KEY}); see regions.sam.checkpoint")
    sam = build()
    width, expected = len(weights[_WIDTH_KEY]), len(sam.state_dict()[_WIDTH_KEY])
    if width != expected:
        other = f"those of {WIDTHS[width]}" if width in WIDTHS else f"{width} wide, not {expected}"
        raise UserError(f"{path}: the weights are {other}; regions.sam.model is {name}")
    try:
        sam.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of SAM {name}: {reason}") from error
    return sam.eval().requires_grad_(False)
