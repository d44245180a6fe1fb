"""The language of captions, guessed from small words, to warn where sentences are split as in another."""

import re
from collections import Counter
from collections.abc import Iterable

_SMALL_WORDS = {
    "english": "the of and with is are on to",
    "german": "der die das und ist mit auf eine",
    "french": "le les des et est avec une dans",
    "spanish": "el los las y con una del por",
    "italian": "il gli di che con della sono è",
    "portuguese": "o os um uma com do da em",
    "dutch": "het een van met op de staat zijn",
    "swedish": "och en ett på med av som det",
    "polish": "na i z w jest się do oraz",
    "russian": "и на в с из под это по",
}
# A guess needs this share of small words, and so many times those of the next language.
SHARE, LEAD = 0.05, 1.5


def guess(captions: Iterable[str]) -> str:
    """The language that most small words belong to, as NLTK names it; "" where that is not clear."""
    words = Counter(word for caption in captions for word in re.findall(r"\w+", caption.lower()))
    found = {name: sum(words[word] for word in small.split()) for name, small in _SMALL_WORDS.items()}
    (first, most), (_, next_most) = Counter(found).most_common(2)
    return first if most > SHARE * words.total() and most > LEAD * next_most else ""


def doubt(captions: Iterable[str], parameters: str) -> str:
    """A warning where captions are not in the language of Punkt's parameters (`pairs.sentences`), or ""."""
    # The embedded parameters are English; others are named punkt_tab/<language>.
    language = parameters.partition("/")[2] or "english"
    found = guess(captions)
    if found in ("", language):
        return ""
    return (
        f"the captions look {found.capitalize()}, pairs.sentences: {parameters} is {language.capitalize()}: "
        f"sentences may end in wrong places; punkt_tab/{found} is NLTK's for them"
    )
