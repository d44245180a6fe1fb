"""Pictures inside the page: small copies as data addresses, boxes drawn over them, heat maps."""

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from goal.boxes import View
from goal.datasets.images import open_image

# Pixels, the longer side of a copy.
SIDE = 320
QUALITY = 80
HEAT = "inferno"
HEAT_ALPHA = 0.6
# Seen on light and on dark ground, and told apart by colour-blind readers.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8b5a2b", "#808080")


def small(image: Image.Image, side: int = SIDE) -> str:
    """A copy whose longer side is at most `side` pixels, as a data address; never larger than the picture."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _address(image, "JPEG", quality=QUALITY)


def small_file(path: str | Path, max_megapixels: float) -> str:
    """The same of a file; raises ImageError where it cannot be opened."""
    return small(open_image(path, max_megapixels))


def viewed(image: Image.Image, mode: str) -> str:
    """The part of a picture that a network sees by `mode` (goal.boxes.View), sharper than it sees it."""
    view = View(image.size, min(SIDE, *image.size), mode)
    left, top = view.offset
    square = (left, top, left + view.view_size, top + view.view_size)
    return _address(
        image.resize(view.resized, Image.Resampling.LANCZOS).crop(square), "JPEG", quality=QUALITY
    )


def heat(values: torch.Tensor) -> str:
    """A map (rows, columns) as a half transparent picture of one pixel a patch, its range stretched."""
    cells = values.numpy().astype(np.float64)
    span = cells.max() - cells.min()
    coloured = matplotlib.colormaps[HEAT]((cells - cells.min()) / span if span else np.zeros_like(cells))
    coloured[..., 3] = HEAT_ALPHA
    return _address(Image.fromarray((coloured * 255).round().astype(np.uint8), "RGBA"), "PNG")


def colour(place: int) -> str:
    """The colour of the place-th box of a picture."""
    return COLOURS[place % len(COLOURS)]


def _address(image: Image.Image, kind: str, **options: int) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
