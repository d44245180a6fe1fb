"""A sheet to judge mined pairs by: pictures with numbered boxes, beside each the sentences of the boxes."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from goal.reporting import cards, pictures
from goal.reporting.pictures import PAPER, SIDE, TAG
from goal.runtime import files

INK, FAINT = "#1a1a1a", "#767676"
COLUMNS = 2
# Pixels: the size of letters, a line of text, the space around a card.
SIZE, LINE, GAP = 13, 19, 24
# Characters in a line, and the pixels of each: the font's letters are equally wide.
CHARACTERS, LETTER = 60, 8
# Pixels of a card: where its number squares and its text begin, and its width.
NUMBERS = SIDE + GAP // 2
TEXT = NUMBERS + TAG + 6
WIDTH = TEXT + CHARACTERS * LETTER


def write(shards: Sequence[Path], manifest: Path, count: int, max_megapixels: float, target: Path) -> None:
    """Draw up to `count` pictures that have pairs, spread evenly over the shards of pairs, as a PNG."""
    sheet = _sheet([_drawn(card) for card in cards.drawn(shards, manifest, count, max_megapixels)])
    with files.atomic(target) as draft:
        sheet.save(draft, format="PNG")


def _sheet(drawn: Sequence[Image.Image]) -> Image.Image:
    """The drawn cards in columns on white; a line of text where there is none."""
    rows = [drawn[start : start + COLUMNS] for start in range(0, len(drawn), COLUMNS)]
    heights = [max(card.height for card in row) + GAP for row in rows]
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, GAP + max(sum(heights), 2 * LINE)), PAPER)
    if not drawn:
        ImageDraw.Draw(sheet).text((GAP, GAP), "no pairs to show", INK, _font())
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            sheet.paste(card, (GAP + column * (WIDTH + GAP), top))
        top += height
    return sheet


def _drawn(card: cards.Card) -> Image.Image:
    """One card: the picture on the left, the sentences with the numbers of their boxes on the right."""
    texts = [textwrap.wrap(f"{one.note}: {' '.join(one.text.split())}", CHARACTERS) for one in card.sentences]
    height = max(card.picture.height, LINE * (1 + sum(map(len, texts))))
    drawn = Image.new("RGB", (WIDTH, height), PAPER)
    drawn.paste(card.picture)
    pen = ImageDraw.Draw(drawn)
    pen.text((NUMBERS, 0), card.id, INK, _font("-Bold"))
    top = LINE
    for one, lines in zip(card.sentences, texts, strict=True):
        if one.number:
            pictures.tag(pen, NUMBERS, top, one.number)
        for line in lines:
            pen.text((TEXT, top), line, INK if one.number else FAINT, _font())
            top += LINE
    return drawn


def _font(style: str = "") -> ImageFont.FreeTypeFont:
    return pictures.font(f"DejaVuSansMono{style}", SIZE)
