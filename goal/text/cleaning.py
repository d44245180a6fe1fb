"""CLIP's cleaning of a text: broken encodings repaired, HTML entities resolved."""

import html

import ftfy


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
