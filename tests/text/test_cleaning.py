"""Cleaning: open_clip's, once and for all, so that the manifest holds what CLIP reads."""

import html

import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from goal.text import split_sentences, tokenize
from goal.text.cleaning import clean
from tests.text.test_text import CAPTION_FILES, CLEANED, MESSY, UNCUT, glyphs, reference, shared

MORE = ["amp;", "lt;", "#38;", "&#x26;", "&#195;", "&copy;", "Ã", "\u0192Â©", "\x80", "\x85", "\u2028", "ŉ"]
escaped = st.text(max_size=20).map(lambda text: html.escape(html.escape(html.escape(text))))
# UTF-8 that was read with the wrong codec.
misread = st.text(max_size=12).map(lambda text: text.encode("utf-8", "replace").decode("latin-1"))
texts = st.lists(st.sampled_from(MESSY + MORE), max_size=30).map("".join) | st.text() | escaped | misread


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A cat.\r\n A  dog.\u2028", "A cat.\n A  dog."),
        ("AT&amp;T &lt;shop&gt; &amp;amp;amp;amp;quot;open&amp;amp;amp;amp;quot;", 'AT&T <shop> "open"'),
        ("Itâ€™s a “cafÃ©” of ﬁsh", 'It\'s a "café" of fish'),
        ("&Atilde;&copy;t&Atilde;&copy;", "été"),
        ("A \x1b[31mred\x1b[0m\x00 İ", "A red İ"),
        ("\x00 &nbsp;\n", ""),
    ],
)
def test_what_is_repaired_and_what_stays(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@settings(max_examples=500, deadline=None)
@given(texts)
@example("&am&amp;p;quot;")
def test_a_clean_text_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned == cleaned.strip()
    # For open_clip, too, only case and whitespace are left to do.
    assert open_clip.tokenizer.basic_clean(cleaned) == cleaned
    ids = tokenize(cleaned, [], UNCUT).ids.tolist()
    assert ids[1:-1] == reference().encode(cleaned)


@pytest.mark.parametrize("marked", CLEANED.values(), ids=CLEANED)
def test_cleaning_changes_no_token(marked: str) -> None:
    caption = marked.replace("|", "")
    assert tokenize(clean(caption), [], UNCUT).ids.tolist() == tokenize(caption, [], UNCUT).ids.tolist()


def test_real_captions_keep_open_clips_tokens_once_clean() -> None:
    captions = {row["caption"] for name in CAPTION_FILES for row in shared(f"captions/{name}")}
    changed = {caption: clean(caption) for caption in captions if clean(caption) != caption.strip()}
    assert changed
    for caption, cleaned in changed.items():
        sentences = split_sentences(cleaned)
        assert glyphs("".join(one.text for one in sentences)) == glyphs(cleaned)
        assert tokenize(cleaned, sentences, UNCUT).ids[1:-1].tolist() == reference().encode(caption)
