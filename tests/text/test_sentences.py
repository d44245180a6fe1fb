"""Sentences: what ends one, what does not, and that offsets lose nothing of the caption."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goal.cleaning import clean
from goal.errors import UserError
from goal.text import Sentence, punkt, split_sentences

# A bar marks the borders; where it stands, the caption may have whitespace.
SPLIT = {
    "decimal": "The pole is 4.5 m high.| It is red.",
    "decimal and unit at the end": "The pole is 4.5 m.| The wall is 3.2 m.| Trees stand there.",
    "unit with a full stop inside": "It is 8 cm. wide.| It weighs 2 kg. in all.",
    "decimal with a stray space": 'The tag reads "$28. 60" in red.| It hangs.',
    "country": "The U.S. flag waves in the U.S.| The sky is blue.",
    "ellipsis inside": "Steps ... lead up.| Wait... there is more.",
    "ellipsis at the end": "It goes on...| The rest is dark.",
    "one-character ellipsis": "It goes on… and on…| The rest is dark.",
    "number": "House No. 7 stands beside no. 8.| Is there a third?| No.| It ends there.",
    "for example": "Fruit, e.g. apples, lies there.| Others, i.e. pears, too.| It is approx. 3 cm. wide.",
    "saint and doctor": "St. Mary's Church is old.| Dr. White and Mr. Green enter it.",
    "street at the end": "It is on Main St.| The car is red.",
    "initials": "J. K. Rowling met J.R.R. Tolkien.| John F. Kennedy smiled.",
    "time": "The clock shows 5 p.m.| The sun sets.",
    "inches": "It is 6 in. wide.| The tray is 8 in.| The cup stands in.| Cats play.",
    "exclamation and question": "What a view!| Is it real?| Yes.",
    "both marks": "Really?!| Yes!!!| Fine.",
    "German ordinals": "Am 3. Mai 1900 stand er im 2. Stock.| Das Bild ist aus dem 19. Jahrhundert.| Ja.",
    "quote at the end": 'He said "Stop."| Then he left.',
    "curly quote at the end": "He said “Stop.”| Then he left.",
    "quote inside": 'The words "Keep out!" are red.| The door is shut.',
    "quote with a space inside": 'The word "BUSCaR! " is in black.| It is big.',
    "quote that follows without a space": 'It is above the wall."|EXIT" is written in white.',
    "bracket": "A cat (it is black.)| A dog (brown?) sits.| It is made of (bronze?), given its colour.",
    "semicolons": "A red ball; a blue ball; a green ball.| Done.",
    "numbered lines": "1. A red ball\n|2. A blue ball\n|10) A green ball",
    "bulleted lines": "In the box:\n|- a red ball\n|- a blue ball\n|• a green ball",
    "lines of a product": "Colour: red\n|Size: XL\r\n|Material: wool",
    "paragraphs": "A title\n\n|the text of it.\u2029|More.",
    "wrapped line": "A long line that was\nwrapped here.| It ends\nthere.",
    "number on a notice": 'The notice reads, "2. NO RUNNING" in red.| It hangs.',
    "no full stop": "a cat on a mat with a red ball",
    "lower case": "a cat sits.| a dog runs.",
    "file names": "The file a.txt is version 2.0 of www.example.com.| Done.",
    "entities": "He said &quot;Stop.&quot;| Then AT&amp;T called.&nbsp;|Done.",
    "emoji": "What a view!| 😀 A dog. 🐶",
    "Chinese": "猫在桌子上。|狗在地上！|鸟呢？|都在。”|完",
    "Japanese": "猫がいます。|犬もいます！|高さは４．５メートルです。",
    "Thai": "แมวนั่งอยู่บนโต๊ะ สุนัขนอนอยู่บนพื้น",
    "Arabic": "أين القطة؟| القطة على الطاولة.| الكلب هنا",
    "Hindi": "बिल्ली मेज पर है।| कुत्ता नीचे है।",
}
PIECES = [
    *"abcXYZ 1. , \n\t\"'()!?;:-…&<>",
    "。",
    "؟",
    "।",
    "猫",
    "！",
    "😀",
    "e.g. ",
    "U.S. ",
    "No. 7",
    "“",
    "”",
    "&amp;",
    "&nbsp;",
]
captions = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=40)


def texts(caption: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(caption)]


def glyphs(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("marked", SPLIT.values(), ids=SPLIT)
def test_borders(marked: str) -> None:
    assert texts(clean(marked.replace("|", ""))) == [clean(part) for part in marked.split("|")]


@pytest.mark.parametrize("kind", SPLIT.keys() - {"entities"})
def test_borders_of_a_caption_as_given(kind: str) -> None:
    parts = SPLIT[kind].split("|")
    assert texts("".join(parts)) == [part.strip() for part in parts]


def test_offsets_refer_to_the_caption_as_given() -> None:
    caption = "  One &amp; “two”.\r\n\r\n Three… four!  "
    assert split_sentences(caption) == [Sentence(2, 18, "One &amp; “two”."), Sentence(23, 35, "Three… four!")]


@pytest.mark.parametrize("caption", ["", " ", "\n\t \u3000"])
def test_a_blank_caption_has_no_sentence(caption: str) -> None:
    assert split_sentences(caption) == []


@pytest.mark.parametrize("caption", ["cat", "...", "?!", '"', "😀😀", "1.", "- ", "\u200b", "\x00"])
def test_anything_else_has_one_at_least(caption: str) -> None:
    assert texts(caption) == [caption.strip()]


@settings(max_examples=400, deadline=None)
@given(captions)
def test_every_character_that_is_not_whitespace_is_in_exactly_one_sentence(caption: str) -> None:
    sentences = split_sentences(caption)
    assert glyphs("".join(sentence.text for sentence in sentences)) == glyphs(caption)
    assert all(a.end <= b.start for a, b in zip(sentences, sentences[1:], strict=False))
    for sentence in sentences:
        assert sentence.text == caption[sentence.start : sentence.end] == sentence.text.strip() != ""


@pytest.mark.parametrize("piece", ["!) ", ". ", "a. ", "\n", " ", "&amp;", "Ã© ", "猫。"])
def test_a_page_of_rubbish_is_no_trouble(piece: str) -> None:
    caption = piece * 20_000
    assert glyphs("".join(texts(caption))) == glyphs(caption)


def test_fault_9_of_the_release_splitting_on_full_stops() -> None:
    caption = "The pole is 4.5 m. It stands in the U.S. next to a fence... Is it red? Yes! It is."
    release = [part.strip() for part in caption.split(".") if part.strip()]
    assert release[:4] == ["The pole is 4", "5 m", "It stands in the U", "S"]
    assert "Is it red? Yes! It is" in release
    assert texts(caption) == [
        "The pole is 4.5 m.",
        "It stands in the U.S. next to a fence...",
        "Is it red?",
        "Yes!",
        "It is.",
    ]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NLTK's data folder with parameters of Punkt that know one abbreviation of their own."""
    import nltk

    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("zzz\n")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    punkt.load.cache_clear()
    yield
    punkt.load.cache_clear()


CAPTION = "A zzz. Cat sits by Dr. White."


@pytest.mark.usefixtures("installed")
def test_installed_parameters_are_used_only_when_named() -> None:
    embedded = ["A zzz.", "Cat sits by Dr. White."]
    assert texts(CAPTION) == embedded
    named = split_sentences(CAPTION, "punkt_tab/english")
    assert [sentence.text for sentence in named] == ["A zzz. Cat sits by Dr.", "White."]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["punkt_tab/german", "punkt_tab/../english", "punkt_tab/", "punkt", ""])
def test_unknown_parameters_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        split_sentences(CAPTION, name)
    assert repr(name) in str(error.value)
    assert "embedded" in str(error.value)
    assert "\n" not in str(error.value)
