"""Sentences of a caption with their offsets: NLTK's Punkt, and the borders that need no statistics."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from goal import punkt

EMBEDDED = punkt.EMBEDDED
Spans = Callable[[str], Iterator[tuple[int, int]]]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a caption: caption[start:end] == text, without outer whitespace."""

    start: int
    end: int
    text: str


def split_sentences(caption: str, parameters: str = EMBEDDED) -> list[Sentence]:
    """Split a caption into sentences, in order; offsets are characters of the caption as given (LISM).

    Every character that is not whitespace lies in exactly one sentence; a blank caption has none. No border
    cuts a run of punctuation, since CLIP reads that as one word. `parameters` are Punkt's: `embedded` (those of
    goal.punkt, the same on every machine) or `punkt_tab/<language>`, NLTK's own. The latter are never picked up
    just because they are installed: the same commit would then mine other pairs on another machine.
    Raises UserError where the parameters are unknown or not installed.
    """
    borders = [0]
    for border in _borders(caption, punkt.load(parameters)):
        border = _behind_punctuation(caption, border)
        if border > borders[-1] and not _LABEL.search(caption[borders[-1] : border].strip()):
            borders.append(border)
    sentences = (_stripped(caption, start, end) for start, end in pairwise([*borders, len(caption)]))
    return [sentence for sentence in sentences if sentence.text]


def _stripped(caption: str, start: int, end: int) -> Sentence:
    text = caption[start:end].lstrip()
    start = end - len(text)
    text = text.rstrip()
    return Sentence(start, start + len(text), text)


# The number of a list's item, or of a notice that is quoted, is no sentence of its own: `1.`, `reads "2.`
_LABEL = re.compile(r"(?:^|(?<=[\s,(])[\"“])\(?(?:\d{1,3}|[A-Za-z])[.)]$")
_BULLET = re.compile(r"[-–—*•·‣▪]+\s|\(?(?:\d{1,3}|[A-Za-z])[.)]\s")
# Full stops that need no space behind them, with the quotes and brackets that close there: Chinese and
# Japanese, Arabic and Urdu, Devanagari, Armenian, Ethiopic, Khmer, Burmese, Tibetan.
_STOP = r"(?<!\d)[。！？｡．؟۔।॥։።፧។၊။༎]+[」』”’\"'）)】》〉]*"
_LINES = r"(?P<lines>\s*[\n\r\v\f\x85\u2028\u2029]\s*)"
_CERTAIN = re.compile(rf"{_LINES}|{_STOP}")


def _borders(caption: str, spans: Spans) -> Iterator[int]:
    start = 0
    ends = [match.end() for match in _CERTAIN.finditer(caption) if not _runs_on(caption, match)]
    for end in [*ends, len(caption)]:
        plain, origin = _plain(caption[start:end])
        for first, _ in spans(plain):
            yield start + origin[first]
        yield end
        start = end


def _runs_on(caption: str, border: re.Match[str]) -> bool:
    """Whether a line was only wrapped: one line break, then the text goes on in lower case or with a number."""
    if border["lines"] is None or len(border["lines"].strip(" \t").splitlines()) > 1:
        return False
    following = caption[border.end() : border.end() + 1]
    return (following.islower() or following.isdigit()) and not _BULLET.match(caption, border.end())


_PUNCTUATION = regex.compile(r"[^\s\p{L}\p{N}]{2}")
_OPENING = regex.compile(r"[\"'“‘«(\[「『（《]+(?=[\p{L}\p{N}])(?!\p{Ll})")


def _behind_punctuation(caption: str, border: int) -> int:
    """Move a border that cuts a run of punctuation, as in `a wall."EXIT" is`, behind its quotes.

    0, so no border, where no new sentence opens there: `made of (bronze?), given its colour`.
    """
    if not _PUNCTUATION.match(caption, max(border - 1, 0)):
        return border
    opening = _OPENING.match(caption, border)
    return opening.end() if opening else 0


_QUOTES = str.maketrans({**dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛", "'")})


def _plain(text: str) -> tuple[str, Sequence[int]]:
    """Quotes and ellipses in the ASCII that Punkt knows, and the offset in `text` of each character."""
    if text.isascii():
        return text, range(len(text))
    origin = [place for place, char in enumerate(text) for _ in range(3 if char == "…" else 1)]
    return text.translate(_QUOTES).replace("…", "..."), origin
