"""The project's colours are seen on every ground, and boxes are drawn where they lie."""

import re

import pytest
from PIL import Image, ImageColor

from goal.reporting import pictures
from goal.reporting.pictures import TAG
from tests.imports import ROOT

PAGE = (ROOT / "goal/assets/report.html").read_text()
GROUNDS = {pictures.PAPER, *re.findall(r"--(?:ground|panel): (#[0-9a-f]{6})", PAGE)}


def luminance(colour: str) -> float:
    """WCAG's relative luminance."""
    parts = [part / 255 for part in ImageColor.getrgb(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def filled(drawn: Image.Image, left: int, top: int, number: int) -> float:
    """The share of a number's square there that has the colour of its box."""
    square = list(drawn.crop((left, top, left + TAG, top + TAG)).getdata())
    return square.count(ImageColor.getrgb(pictures.colour(number))) / len(square)


@pytest.mark.parametrize("colour", pictures.COLOURS)
def test_a_colour_is_seen_on_light_and_dark(colour: str) -> None:
    assert len(GROUNDS) == 4
    for ground in GROUNDS:
        darker, lighter = sorted((luminance(colour), luminance(ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 3, ground


def test_numbers_of_boxes_in_one_corner_do_not_hide_each_other() -> None:
    boxes = [(0.0, 0.0, 60.0, 60.0), (0.0, 0.0, 50.0, 50.0), (1.0, 1.0, 70.0, 70.0)]
    drawn = pictures.marked(Image.new("RGB", (100, 100), "black"), boxes)
    for number, box in enumerate(boxes, start=1):
        left, top, right, bottom = (round(3.2 * side) for side in box)
        shares = [filled(drawn, x, y, number) for x in (left, right - TAG) for y in (top, bottom - TAG)]
        # A corner of the outline alone fills a third.
        assert max(shares) > 0.5, number


def test_boxes_are_outlined_where_they_lie_and_numbered() -> None:
    """A small box inside a large one is not hidden; a box at the edge keeps its number in the picture."""
    boxes = [(40.0, 20.0, 60.0, 40.0), (10.0, 10.0, 80.0, 50.0), (99.0, 0.0, 100.0, 60.0)]
    drawn = pictures.marked(Image.new("RGB", (100, 60), "black"), boxes)
    assert drawn.size == (320, 192)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        wanted = ImageColor.getrgb(pictures.colour(number))
        x, y = 3.2 * right, 3.2 * (top + bottom) / 2
        assert wanted in {drawn.getpixel((int(x) - back, int(y))) for back in range(1, 6)}, number
        corner = (min(round(3.2 * left), 320 - TAG), min(round(3.2 * top), 192 - TAG))
        assert filled(drawn, *corner, number) > 0.5, number
