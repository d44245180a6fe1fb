"""A sheet to judge mined pairs by: pictures with their boxes, the sentences in the same colours."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from goal.datasets import slices
from goal.datasets.images import ImageError
from goal.datasets.manifest import Row
from goal.mining import reading
from goal.mining.mined import SIDES
from goal.runtime import files

# Okabe and Ito's colours, darkened to be read on white: the colour-blind tell them apart too.
COLOURS = ("#c44e00", "#0063a6", "#007a58", "#a83d7f", "#8f6b00", "#2b8ab3", "#6b4226", "#4d4d4d")
PAPER, INK, FAINT = "#ffffff", "#1a1a1a", "#767676"
COLUMNS = 2
# Pixels.
PICTURE = 320  # side of the square that a picture is fitted into
TEXT = 460  # width of the sentences beside it
GAP = 24
LINE = 19
SIZE = 14
OUTLINE = 3
TAG = 18  # side of a number's square


Box = tuple[float, float, float, float]


class Mark(NamedTuple):
    """A sentence's number in its picture, and its colour."""

    number: int
    colour: str


@dataclass(frozen=True)
class Card:
    """One picture and what mining made of its sentences, as rows of goal.mining.mined.PAIRS."""

    row: Row
    image: Image.Image
    sentences: list[dict]


def write(
    shards: Sequence[Path], shard_size: int, manifest: Path, count: int, max_megapixels: float, target: Path
) -> None:
    """Draw up to `count` pictures that have pairs, spread evenly over the shards of pairs, as a PNG.

    shards: of `shard_size` rows of the manifest each, in order.
    """
    # Drawn one by one: a card is small, its picture may take hundreds of megabytes.
    sheet = _sheet([_draw(card) for card in _cards(shards, shard_size, manifest, count, max_megapixels)])
    with files.atomic(target) as draft:
        sheet.save(draft, format="PNG")


def _cards(
    shards: Sequence[Path], shard_size: int, manifest: Path, count: int, max_megapixels: float
) -> Iterator[Card]:
    for number, path in enumerate(shards):
        share = count * (number + 1) // len(shards) - count * number // len(shards)
        if not share:
            continue
        pairs = pq.read_table(path)
        names = pairs.filter(pc.equal(pairs["dropped"], ""))["id"].unique().to_pylist()
        picked = {names[place * len(names) // share] for place in range(share)} if names else set()
        for row in slices.rows(manifest, number * shard_size, (number + 1) * shard_size):
            image = reading.picture(row, Path(), max_megapixels) if row.id in picked else None
            if image is not None and not isinstance(image, ImageError):
                yield Card(row, image, pairs.filter(pc.equal(pairs["id"], row.id)).to_pylist())


def _sheet(cards: Sequence[Image.Image]) -> Image.Image:
    """The drawn cards in columns on white; a line of text where there is none."""
    rows = [cards[start : start + COLUMNS] for start in range(0, len(cards), COLUMNS)]
    width = COLUMNS * (PICTURE + TEXT + 2 * GAP) + GAP
    heights = [max(card.height for card in row) + GAP for row in rows]
    sheet = Image.new("RGB", (width, GAP + max(sum(heights), 2 * LINE)), PAPER)
    if not cards:
        ImageDraw.Draw(sheet).text((GAP, GAP), "no pairs to show", INK, _font("DejaVuSans"))
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            sheet.paste(card, (GAP + column * (PICTURE + TEXT + 2 * GAP), top))
        top += height
    return sheet


def _draw(card: Card) -> Image.Image:
    """One card: the picture with its boxes on the left, the sentences with their numbers on the right."""
    lines, marks = [(card.row.id, INK, _font("DejaVuSans-Bold"))], defaultdict(list)
    for one in card.sentences:
        sentence = " ".join(card.row.captions[one["caption"]][one["start"] : one["end"]].split())
        if one["dropped"]:
            colour, start = FAINT, one["dropped"]
        else:
            number = sum(map(len, marks.values())) + 1
            colour, start = COLOURS[(number - 1) % len(COLOURS)], f"{number}   {one['similarity']:.2f}"
            marks[tuple(one[side] for side in SIDES)].append(Mark(number, colour))
        font = _font("DejaVuSans")
        lines += [(line, colour, font) for line in _wrap(f"{start}   {sentence}", font)]
    picture = _marked(card.image, marks)
    card_size = (PICTURE + GAP // 2 + TEXT, max(picture.height, len(lines) * LINE))
    drawn = Image.new("RGB", card_size, PAPER)
    drawn.paste(picture, (0, 0))
    pen = ImageDraw.Draw(drawn)
    for number, (line, colour, font) in enumerate(lines):
        pen.text((PICTURE + GAP // 2, number * LINE), line, colour, font)
    return drawn


def _marked(image: Image.Image, marks: dict[Box, list[Mark]]) -> Image.Image:
    """The picture fitted into its square, each box (image frame) with the numbers of its sentences."""
    scale = PICTURE / max(image.size)
    fitted = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(fitted)
    boxes = {box: tuple(side * scale for side in box) for box in sorted(marks, key=_area, reverse=True)}
    for box, (left, top, right, bottom) in boxes.items():
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        # A white line around the colour: seen on a picture of any colour.
        pen.rectangle((left, top, right, bottom), outline=PAPER, width=OUTLINE + 2)
        inner = (left + 1, top + 1, max(right - 1, left + 1), max(bottom - 1, top + 1))
        pen.rectangle(inner, outline=marks[box][0].colour, width=OUTLINE)
    for box, (left, top, _, _) in boxes.items():
        first = max(0, min(left, fitted.width - len(marks[box]) * (TAG + 1)))
        for place, mark in enumerate(marks[box]):
            x = first + place * (TAG + 1)
            pen.rectangle((x, top, x + TAG - 1, top + TAG - 1), fill=mark.colour, outline=PAPER)
            pen.text(
                (x + TAG / 2, top + TAG / 2), str(mark.number), PAPER, _font("DejaVuSans-Bold", 11), "mm"
            )
    return fitted


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines no wider than TEXT; a word that is wider itself is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= TEXT:
            lines[-1] = longer
            continue
        while font.getlength(word) > TEXT:
            cut = next(end for end in range(len(word), 0, -1) if font.getlength(word[:end]) <= TEXT)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines


@cache
def _font(name: str, size: int = SIZE) -> ImageFont.FreeTypeFont:
    # Matplotlib brings the font along, so that the sheet is the same on every machine.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # The basic layout: the other one hangs on libraries that not every machine has.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
