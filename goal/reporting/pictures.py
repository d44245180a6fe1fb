"""How the project draws: its colours, numbered boxes, heat maps, and pictures as data addresses of a page."""

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from goal.boxes import View
from goal.datasets.images import open_image

# Okabe and Ito's colours, which colour-blind readers tell apart, each as dark or light as it takes to be seen
# on white, on the page's dark ground and under white numbers: contrast 3 or more.
COLOURS = VERMILION, BLUE, GREEN, PINK, GOLD, SKY, BROWN, GREY = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#c46f9d",
    "#b8860b",
    "#3a95c9",
    "#a0673a",
    "#808080",
)
PAPER = "#ffffff"
# Pixels: the longer side of a copy, the outline of a box, the side of the square that holds its number.
SIDE, OUTLINE, TAG = 320, 3, 18
JPEG = {"format": "JPEG", "quality": 85, "subsampling": 0}
HEAT, HEAT_ALPHA = "inferno", 0.6

Box = tuple[float, float, float, float]


def small(image: Image.Image, side: int = SIDE) -> str:
    """A copy whose longer side is at most `side` pixels, as a data address; never larger than the picture."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _address(image, **JPEG)


def small_file(path: str | Path, max_megapixels: float) -> str:
    """The same of a file; raises ImageError where it cannot be opened."""
    return small(open_image(path, max_megapixels))


def viewed(image: Image.Image, mode: str) -> str:
    """The part of a picture that a network sees by `mode` (goal.boxes.View), sharper than it sees it."""
    view = View(image.size, min(SIDE, *image.size), mode)
    left, top = view.offset
    square = (left, top, left + view.view_size, top + view.view_size)
    return _address(image.resize(view.resized, Image.Resampling.LANCZOS).crop(square), **JPEG)


def heat(values: torch.Tensor) -> str:
    """A map (rows, columns) as a half transparent picture of one pixel per patch, its range stretched."""
    cells = values.numpy().astype(np.float64)
    span = cells.max() - cells.min()
    coloured = matplotlib.colormaps[HEAT]((cells - cells.min()) / span if span else np.zeros_like(cells))
    coloured[..., 3] = HEAT_ALPHA
    return _address(Image.fromarray((coloured * 255).round().astype(np.uint8), "RGBA"), format="PNG")


def colour(number: int) -> str:
    """The colour of a picture's number-th box, from 1."""
    return COLOURS[(number - 1) % len(COLOURS)]


def marked(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """The picture, its longer side SIDE pixels, with each box (image frame) outlined and numbered from 1."""
    scale = SIDE / max(image.size)
    fitted = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(fitted)
    corners = [tuple(side * scale for side in box) for box in boxes]
    # The largest first, so that it hides no other; the numbers lie above all outlines.
    for place in sorted(range(len(boxes)), key=lambda place: _area(boxes[place]), reverse=True):
        left, top, right, bottom = corners[place]
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        # A white line around the colour: seen on a picture of any colour.
        pen.rectangle((left, top, right, bottom), outline=PAPER, width=OUTLINE + 2)
        inner = (left + 1, top + 1, max(right - 1, left + 1), max(bottom - 1, top + 1))
        pen.rectangle(inner, outline=colour(place + 1), width=OUTLINE)
    taken: list[tuple[float, float]] = []
    for number, (left, top, right, bottom) in enumerate(corners, start=1):
        places = [
            (max(0, min(x, fitted.width - TAG)), max(0, min(y, fitted.height - TAG)))
            for y in (top, bottom - TAG)
            for x in (left, right - TAG)
        ]
        # The first corner of the box where this number covers no other one.
        free = (one for one in places if all(max(abs(one[0] - x), abs(one[1] - y)) >= TAG for x, y in taken))
        taken.append(next(free, places[0]))
        tag(pen, *taken[-1], number)
    return fitted


def tag(pen: ImageDraw.ImageDraw, left: float, top: float, number: int) -> None:
    """A square of TAG pixels in a box's colour with its number."""
    pen.rectangle((left, top, left + TAG - 1, top + TAG - 1), fill=colour(number), outline=PAPER)
    pen.text((left + TAG / 2, top + TAG / 2), str(number), PAPER, font("DejaVuSans-Bold", 11), "mm")


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that Matplotlib brings along, so that pictures are the same on every machine; size in pixels."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic layout: the other one depends on libraries that not every machine has.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _address(image: Image.Image, **options: str | int) -> str:
    data = io.BytesIO()
    image.save(data, **options)
    return f"data:image/{options['format'].lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
