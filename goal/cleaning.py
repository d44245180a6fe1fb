"""CLIP's cleaning of a text, with the place in the text as given that each cleaned character comes from."""

import difflib
import html
import re
from collections.abc import Sequence

import ftfy
import regex

# What ftfy and html repair together: an entity, else one character with the marks that combine with it.
_PIECES = regex.compile(r"&#?\w{1,32};|\X")
_WORDS = re.compile(r"\s*\S+|\s+")


def repair(text: str) -> tuple[str, Sequence[int]]:
    """The text with ftfy's repairs and html's entities resolved, and the origin of each of its characters.

    `origin[i]` is the offset in `text` of what became character i; it never falls.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text, range(len(text))
    repaired = _repair(text)
    return repaired, range(len(text)) if repaired == text else _align(text, repaired)


def clean(text: str) -> tuple[str, Sequence[int]]:
    """The repaired text in lower case, and the origin of each of its characters.

    Runs of whitespace stay as they are: CLIP's pattern skips whitespace, so that collapsing it, as open_clip
    does, changes no token.
    """
    repaired, origin = repair(text)
    lowered = repaired.lower()
    if len(lowered) != len(repaired):
        # Some capitals become two characters, such as the dotted capital I.
        origin = [place for place, char in zip(origin, repaired, strict=True) for _ in char.lower()]
    return lowered, origin


def _repair(text: str) -> str:
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _align(text: str, repaired: str) -> list[int]:
    """Origins by the words that repair left alone, and by pieces inside those that it changed."""
    before, after = _WORDS.findall(text), _WORDS.findall(repaired)
    origin: list[int] = []
    start = 0
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for _, a1, a2, b1, b2 in matcher.get_opcodes():
        source, target = "".join(before[a1:a2]), "".join(after[b1:b2])
        origin += [start + place for place in _align_block(source, target)]
        start += len(source)
    return origin


def _align_block(source: str, target: str) -> Sequence[int]:
    if source == target:
        return range(len(source))
    pieces = _PIECES.findall(source)
    if "".join(map(_repair, pieces)) == target:
        widths, results = [len(piece) for piece in pieces], [len(_repair(piece)) for piece in pieces]
        return _spread(widths, results)
    # Text decoded with the wrong codec: as many characters as the right text has bytes.
    widths = [len(char.encode()) for char in target]
    if sum(widths) == len(source):
        return _spread(widths, [1] * len(target))
    return [len(source) * place // len(target) for place in range(len(target))]


def _spread(widths: list[int], results: list[int]) -> list[int]:
    origin, start = [], 0
    for width, count in zip(widths, results, strict=True):
        origin += [start] * count
        start += width
    return origin
