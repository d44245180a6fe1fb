"""CLIP's cleaning of a text: broken encodings repaired, HTML entities resolved; HTML's tags taken out."""

import html
import re
from html.parser import HTMLParser

import ftfy

# A tag of these ends a line; the other ones stand inside it. What is in <...> and is no tag of HTML stays: a
# sign may read <EXIT>.
_BLOCK = re.compile("p|br|hr|div|section|article|blockquote|[uo]l|li|table|tr|h[1-6]")
_INLINE = re.compile("[abius]|em|strong|span|font|small|big|su[bp]|mark|img|code|t[dh]|tbody")


def repair(text: str) -> str:
    """One pass of open_clip's cleaning, before it strips, collapses whitespace and lowers the case."""
    # ftfy is slow and leaves such a text as it is.
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def clean(text: str) -> str:
    """The text repaired until nothing changes, without outer whitespace: clean(clean(text)) == clean(text).

    Case and inner whitespace stay, for display and for the borders of sentences; CLIP's tokens depend on
    neither. One pass is enough for all but text that was escaped or broken several times over.
    """
    while (cleaned := repair(text).strip()) != text:
        text = cleaned
    return text


def strip_tags(text: str) -> str:
    """A clean text without HTML's tags and comments; where a paragraph or another block was, a line ends."""
    end = text.rfind(">") + 1
    # No tag begins in what is left: Python's parsers differ in what they make of half a tag.
    if "<" not in text[:end]:
        return text
    stripper = _Stripper()
    stripper.feed(text[:end])
    stripper.close()
    if not stripper.found:
        return text
    return re.sub(r"\s*\n\s*", "\n", "".join(stripper.parts) + text[end:]).strip()


class _Stripper(HTMLParser):
    """Collects the text between tags; `found`: whether there was a tag or comment."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.found = False

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._tag(tag, self.get_starttag_text())

    def handle_endtag(self, tag: str) -> None:
        self._tag(tag, f"</{tag}>")

    def handle_comment(self, data: str) -> None:
        self.found = True

    def _tag(self, tag: str, text: str) -> None:
        block, inline = _BLOCK.fullmatch(tag), _INLINE.fullmatch(tag)
        self.found |= bool(block or inline)
        self.parts.append("\n" if block else "" if inline else text)
