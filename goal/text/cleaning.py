"""CLIP's cleaning of a text, with the place in the text as given that each cleaned character comes from."""

import difflib
import functools
import html
import re
from collections.abc import Sequence

import ftfy
import regex

# What is repaired as a whole: an entity (escaped more than once, or without its semicolon), a terminal's
# escape, else one character with the marks that combine with it.
_PIECES = regex.compile(r"&(?:amp;)*#?[0-9A-Za-z]{1,32};?|\x1b\[[\d;]*[a-zA-Z]|\X")
_WORDS = re.compile(r"\s*\S+|\s+")


def repair(text: str) -> tuple[str, Sequence[int]]:
    """The text with ftfy's repairs and html's entities resolved, and the origin of each of its characters.

    `origin[i]` is the offset in `text` of what became character i; it never falls.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text, range(len(text))
    repaired = _repair(text)
    return repaired, range(len(text)) if repaired == text else _origin(text, repaired)


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


_repair_piece = functools.lru_cache(maxsize=1 << 14)(_repair)


def _origin(text: str, repaired: str) -> list[int]:
    """Repairs piece by piece, which nearly always gives `repaired`, and notes each piece's place.

    The exception is text that was decoded with the wrong codec, which ftfy sees only in its context: there
    the two results are aligned.
    """
    guess, origin = [], []
    for match in _PIECES.finditer(text):
        piece = match.group()
        fixed = _repair_piece(piece)
        guess.append(fixed)
        origin += range(*match.span()) if fixed == piece else [match.start()] * len(fixed)
    guessed = "".join(guess)
    return origin if guessed == repaired else [origin[place] for place in _align(guessed, repaired)]


def _align(source: str, target: str) -> list[int]:
    """The place in source of each character of target: word by word, where both have as many words."""
    before, after = _WORDS.findall(source), _WORDS.findall(target)
    if len(before) != len(after):
        return _align_block(source, target)
    places: list[int] = []
    start = 0
    for word, fixed in zip(before, after, strict=True):
        places += [start + place for place in _align_block(word, fixed)]
        start += len(word)
    return places


def _align_block(source: str, target: str) -> list[int]:
    """By what both have in common; what differs is spread evenly, what is new goes to what stands before."""
    places: list[int] = []
    for _, a, a_end, b, b_end in difflib.SequenceMatcher(None, source, target).get_opcodes():
        first = a if a < a_end else max(0, a - 1)
        places += [first + (a_end - a) * place // (b_end - b) for place in range(b_end - b)]
    return places
