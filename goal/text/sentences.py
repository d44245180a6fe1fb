"""Sentences of a caption with their offsets: NLTK's Punkt, and the borders that need no statistics."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import regex

from goal.text import punkt

Spans = Callable[[str], list[tuple[int, int]]]

# Full stops that need no space behind them: those of Chinese and Japanese, Arabic and Urdu, Devanagari,
# Armenian, Ethiopic, Khmer, Burmese and Tibetan, and any full stop behind a Chinese or Japanese character.
_STOP = r"(?:[。｡؟۔।॥։።፧።၊။༎]|(?<=[\p{Han}\p{Hiragana}\p{Katakana}])[.!?！？])[.!?！？。｡؟۔।॥]*"
_STOP += r"[」』»\"'”’）)】》〉\]]*"
_ELLIPSIS = r"…[\"')\]]*\s+(?=\p{Lu})"
# Metric units are written without a full stop: one behind `4.5 m` ends the sentence, if a capital follows.
_METRIC = r"\d\s?(?:[cmk]?m|[mk]?g|[mc]?l)"
_CERTAIN = regex.compile(rf"(?P<lines>[\n\f]\s*)|{_STOP}|{_ELLIPSIS}|(?<={_METRIC})\.\s+(?=\p{{Lu}})")
# The number of a list's item, or of a notice that is quoted, is no sentence of its own: `1.`, `reads "2.`
# A label is shorter than the eight characters that are looked at.
_LABEL = regex.compile(r"(?:^|(?<=[\s,(])\")\(?(?:\d{1,3}|[A-Za-z])[.)]$")
_ITEM = regex.compile(r"[-–—*•·‣▪]+\s|\(?(?:\d{1,3}|[A-Za-z])[.)]\s")
# No border: a decimal with a stray space, `$28. 60` (all 19 places of this form in the 9,098 captions of the
# GOAL release's test files are such), and a quotation inside a sentence, `the words "Keep out!" are painted`.
_UNBROKEN = regex.compile(
    rf"(?<=\d\.\s+)(?=\d)|(?<=[.!?]\s?[\"')\]]+\s*)(?=\p{{Ll}})|(?<={_METRIC}\.\s+)(?=\p{{Ll}})"
)
_OPENING = regex.compile(r"[\"'«(\[「『（《]+(?=[\p{Lu}\p{Lo}\p{N}])")
_WORD = regex.compile(r"[\p{L}\p{N}]")
_INSIDE_PUNCTUATION = regex.compile(r"[^\s\p{L}\p{N}]{2}")


@dataclass(frozen=True)
class Sentence:
    """A sentence of a caption: caption[start:end] == text, without outer whitespace."""

    start: int
    end: int
    text: str


def split_sentences(caption: str, parameters: str = punkt.EMBEDDED) -> list[Sentence]:
    """Split a caption into sentences, in order (LISM); write `clean(caption)` for a text of unknown origin.

    Every character that is not whitespace lies in exactly one sentence; a blank caption has none. No border
    cuts a run of punctuation, since CLIP reads that as one word.
    `parameters` are Punkt's: `embedded` (those of goal.text.punkt, the same on every machine) or
    `punkt_tab/<language>`, NLTK's own. The latter are never picked up just because they are installed: one
    commit would then mine other pairs on another machine. Raises UserError where the parameters are unknown
    or not installed.
    """
    cuts, word = [0], _WORD.search(caption)
    for border in _borders(caption, punkt.load(parameters)):
        if border <= cuts[-1] or _LABEL.search(caption[cuts[-1] : border].strip()[-8:]):
            continue
        if word and word.start() < border:
            cuts.append(border)
            word = _WORD.search(caption, border)
        elif len(cuts) > 1:
            # Punctuation or an emoji behind a sentence belongs to it.
            cuts[-1] = border
    inner = (cut for cut in cuts[1:] if cut < len(caption))
    sentences = (_stripped(caption, start, end) for start, end in pairwise([0, *inner, len(caption)]))
    return [sentence for sentence in sentences if sentence.text]


def _stripped(caption: str, start: int, end: int) -> Sentence:
    text = caption[start:end].lstrip()
    start = end - len(text)
    text = text.rstrip()
    return Sentence(start, start + len(text), text)


def _borders(text: str, spans: Spans) -> Iterator[int]:
    """Offsets where a sentence ends and the next begins, rising, the text's end included."""
    start = 0
    certain = [match.end() for match in _CERTAIN.finditer(text) if not _runs_on(text, match)]
    for end in [*certain, len(text)]:
        for first, _ in spans(text[start:end]):
            if border := _confirmed(text, start + first):
                yield border
        if border := _confirmed(text, end):
            yield border
        start = end


def _runs_on(text: str, border: regex.Match[str]) -> bool:
    """Whether a line was only wrapped: one break, then the text goes on in lower case or with a number."""
    if border["lines"] is None or len(regex.findall(r"[\n\f]", border["lines"])) > 1:
        return False
    following = text[border.end() : border.end() + 1]
    return (following.islower() or following.isdigit()) and not _ITEM.match(text, border.end())


def _confirmed(text: str, border: int) -> int:
    """The border, 0 where there is none; it never cuts the punctuation that CLIP reads as one word.

    It moves behind the quotes that open there, as in `a wall."EXIT" is`, and gives way to punctuation that
    goes on otherwise, as in `made of (bronze?), given its colour`.
    """
    if _INSIDE_PUNCTUATION.match(text, max(border - 1, 0)):
        opening = _OPENING.match(text, border)
        return opening.end() if opening else 0
    return 0 if _UNBROKEN.match(text, border) else border
