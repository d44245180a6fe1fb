"""Token spans of sentences: an independent tokenizer's, and exact where cleaning changes the caption."""

import functools
import itertools
import json
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goal.errors import UserError
from goal.text import Sentence, Tokens, pad, split_sentences, tokenize
from goal.text.cleaning import clean

BOS, EOS = 49406, 49407
UNCUT = 10**6
FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARED = Path(__file__).parents[2].parent / "shared"
CAPTION_FILES = ["docci_test.json", "DCI_test_joint_sim_max_11.json"]


@functools.cache
def reference() -> open_clip.SimpleTokenizer:
    return open_clip.get_tokenizer("ViT-B-16")


def sentence(caption: str, start: int, end: int) -> Sentence:
    return Sentence(start, end, caption[start:end])


def spanned(tokens: Tokens) -> list[list[int]]:
    ids = tokens.ids.tolist()
    return [ids[slice(*span)] if span else [] for span in tokens.spans]


def glyphs(text: str) -> str:
    return "".join(text.split())


def shared(name: str) -> list[dict]:
    file = SHARED / name
    if not file.exists():
        pytest.skip(f"{name} of the shared reference files is not beside this checkout")
    return json.loads(file.read_text(encoding="utf-8"))


def check_case(case: dict) -> None:
    caption = case["caption"]
    rows = [sentence(caption, row["start"], row["end"]) for row in case["sentences"]]
    tokens = tokenize(caption, rows, UNCUT)
    assert len(tokens.ids) == case["n_tokens"]
    assert tokens.spans == [(row["token_start"], row["token_end"]) for row in case["sentences"]]


def test_spans_equal_an_independent_tokenizers() -> None:
    cases = json.loads((FIXTURES / "token_spans.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 60
    for case in cases:
        check_case(case)


def test_all_shared_spans() -> None:
    cases = shared("parity/token_spans.json")
    assert len(cases) == 200
    for case in cases:
        check_case(case)


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_sentences_of_real_captions_are_their_tokens(name: str) -> None:
    """All of them: the sentences' tokens make up the caption's, and each sentence's tokens decode to it."""
    for caption in {row["caption"] for row in shared(f"captions/{name}")}:
        sentences = split_sentences(caption)
        tokens = tokenize(caption, sentences, UNCUT)
        parts = spanned(tokens)
        assert [BOS, *itertools.chain(*parts), EOS] == tokens.ids.tolist()
        for part, one in zip(parts, sentences, strict=True):
            assert glyphs(reference().decode(part)) == glyphs(reference().clean_fn(one.text))


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_ids_of_real_captions_are_open_clips(name: str) -> None:
    captions = [row["caption"] for row in shared(f"captions/{name}")[::9]]
    expected = reference()(captions, context_length=248)
    ids = [tokenize(caption, [], 248).ids for caption in captions]
    assert all(len(one) <= 248 for one in ids)
    assert torch.equal(pad(ids), expected[:, : max(map(len, ids))])


CLEANED = {
    "entities": "AT&amp;T &quot;shop&quot;.| It&#39;s &lt;open&gt;.| Caf&eacute; &amp;amp; bar.",
    "spaces": "  A   cat.\t|A\u00a0dog.\r\n|\u3000A  bird. ",
    "quotes": "It’s “red”.| The ‘blue’ one.| «Green».",
    "broken codec": "Itâ€™s a cafÃ©.| The naÃ¯ve â€œsignâ€\x9d.| A dog.",
    "ligatures": "An oﬃce ﬂoor.| A ﬁsh.",
    "wide letters": "ＳＴＯＰ　ＨＥＲＥ.| ７ cats.",
    "combining marks": "A cafe\u0301 and Zu\u0308rich.| A dog.",
    "emoji": "👨\u200d👩\u200d👧 a family.| ❤️ a heart.| 🐱🐶 both.",
    "right to left": "קערה אדומה.| שני כלבים.| القطة على الطاولة.",
    "controls": "A\x00 ca\x1b[31mt\x1b[0m.| \ufeffA \u200bdog.",
    "capitals that grow": "İstanbul İİ.| Ankara.",
    "sigma": "ΣΊΣΥΦΟΣ.| ΟΔΌΣ.",
    "surrogates": "A \ud83d\ude00 face.| A \ud800 half.| A dog.",
}


@pytest.mark.parametrize("marked", CLEANED.values(), ids=CLEANED)
def test_offsets_refer_to_the_caption_also_where_cleaning_changes_it(marked: str) -> None:
    parts = marked.split("|")
    caption = "".join(parts)
    starts = [sum(map(len, parts[:row])) for row in range(len(parts) + 1)]
    rows = [sentence(caption, *pair) for pair in zip(starts, starts[1:], strict=False)]
    tokens = tokenize(caption, rows, UNCUT)
    assert tokens.ids.tolist() == [BOS, *reference().encode(caption), EOS]
    assert spanned(tokens) == [reference().encode(part) for part in parts]


MESSY = [
    *"abIS 1.!'",
    "&amp;",
    "&copy",
    "&",
    ";",
    "“",
    "â€™",
    "Ã©",
    "ﬁ",
    "é",
    "e\u0301",
    "İ",
    "Σ",
    "，",
    "。",
    "😀",
    "\u200d",
]
MESSY += ["\x00", "\r\n", "\u00a0", "ש", "<", "\x1b[0m", "\ud83d"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(MESSY), max_size=30).map("".join), st.data())
def test_any_cut_shares_out_all_tokens(caption: str, data: st.DataObject) -> None:
    """A clean caption cut anywhere, even inside a word: every token belongs to one part, in order."""
    caption = clean(caption)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(caption)), max_size=4)))
    borders = [0, *cuts, len(caption)]
    rows = [sentence(caption, *pair) for pair in zip(borders, borders[1:], strict=False)]
    tokens = tokenize(caption, rows, UNCUT)
    assert tokens.ids.tolist() == [BOS, *reference().encode(caption), EOS]
    assert list(itertools.chain(*spanned(tokens))) == tokens.ids[1:-1].tolist()


CAPTION = "A red cat sits on a mat. Two dogs run past it! Is there a bird?"


def test_sentences_may_overlap_and_come_in_any_order() -> None:
    rows = [sentence(CAPTION, *pair) for pair in ((25, 46), (0, 24), (2, 9), (0, 63), (9, 9), (24, 25))]
    tokens = tokenize(CAPTION, rows, 77)
    alone = [reference().encode(row.text) for row in rows]
    assert spanned(tokens) == alone
    assert tokens.spans[4:] == [None, None]


def test_a_token_across_a_border_belongs_to_the_sentence_of_its_first_character() -> None:
    caption = 'a wall."EXIT"'
    tokens = tokenize(caption, [sentence(caption, 0, 7), sentence(caption, 7, 13)], 77)
    assert [reference().decode(part).strip() for part in spanned(tokens)] == ['a wall ."', 'exit "']


@pytest.mark.parametrize("length", [3, 10, 18, 19, 77, 248, 249])
def test_the_context_clips_spans_and_keeps_bos_and_eos(length: int) -> None:
    sentences = split_sentences(CAPTION)
    whole, cut = tokenize(CAPTION, sentences, UNCUT), tokenize(CAPTION, sentences, length)
    last = min(length, len(whole.ids)) - 1
    assert cut.ids.tolist() == [*whole.ids[:last].tolist(), EOS]
    assert cut.ids.dtype == torch.int64
    for span, short in zip(whole.spans, cut.spans, strict=True):
        assert short == ((span[0], min(span[1], last)) if span[0] < last else None)


@pytest.mark.parametrize("caption", ["", "   ", "\n\t", "\x00"])
def test_a_blank_caption_is_bos_and_eos(caption: str) -> None:
    tokens = tokenize(caption, split_sentences(caption.strip("\x00")), 77)
    assert tokens.ids.tolist() == [BOS, EOS]
    assert tokens.spans == []


def test_a_caption_of_two_thousand_words_keeps_its_first_tokens() -> None:
    caption = " ".join(["word"] * 2000)
    tokens = tokenize(caption, split_sentences(caption), 248)
    assert len(tokens.ids) == 248
    assert tokens.spans == [(1, 247)]


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (0, 64), (5, 4), (64, 64)])
def test_offsets_outside_the_caption_are_refused_in_one_line(start: int, end: int) -> None:
    with pytest.raises(UserError, match=rf"^sentence 1: offsets {start}:{end} .*63 characters[^\n]*$"):
        tokenize(CAPTION, [sentence(CAPTION, 0, 24), Sentence(start, end, "")], 77)


@pytest.mark.parametrize("length", [2, 0, -1])
def test_a_context_without_room_is_refused(length: int) -> None:
    with pytest.raises(UserError, match=f"^context_length {length}: .*at least 3"):
        tokenize(CAPTION, [], length)


def test_pad_fills_with_zeros_to_the_longest() -> None:
    ids = [tokenize(caption, [], 77).ids for caption in ("a cat", "", "two red dogs")]
    batch = pad(ids)
    assert batch.tolist() == [
        [BOS, *reference().encode(text), EOS, *[0] * gap]
        for text, gap in (("a cat", 1), ("", 3), ("two red dogs", 0))
    ]
    with pytest.raises(ValueError, match="no texts"):
        pad([])


def test_fault_4_of_the_release_a_span_shifted_by_one() -> None:
    """The release measures the prefix with its BOS and its EOS, so that every span begins one token late."""
    sentences = split_sentences(CAPTION)
    tokens = tokenize(CAPTION, sentences, 77)
    for row, (start, end) in zip(sentences, tokens.spans, strict=True):
        own = reference().encode(row.text)
        prefix = [BOS, *reference().encode(CAPTION[: row.start]), EOS]
        release = tokens.ids[len(prefix) : len(prefix) + len(own)].tolist()
        assert tokens.ids[start:end].tolist() == own
        assert start == len(prefix) - 1
        assert release != own
        assert release[:-1] == own[1:]


def test_fault_8_of_the_release_a_long_sentence_makes_its_picture_vanish() -> None:
    caption = "A red cat. " + "and a dog " * 40 + "end."
    sentences = split_sentences(caption)
    assert len(reference().encode(sentences[1].text)) > 77
    tokens = tokenize(caption, sentences, 77)
    assert tokens.spans == [(1, 5), (5, 76)]
    assert len(tokenize(sentences[1].text, [], 77).ids) == 77
