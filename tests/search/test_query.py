"""Queries: the nearest pictures, exactly or nearly; what is read of a text; the command line."""

import os
from pathlib import Path

import pytest

from goal import text
from goal.cli import named
from goal.datasets import images
from goal.errors import UserError
from goal.search import index
from goal.search.query import Search, reading
from tests import tiny

PLACE = Path("index")
MODEL = Path("models/base")


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """The six pictures of the tiny project, and their index."""
    tiny.make(tmp_path, monkeypatch, ("zero-shot", "stage1"))
    index.run(tiny.params(), Path("data/tiny/images"), PLACE, MODEL, "zero-shot")
    return Search(tiny.params(), PLACE, MODEL, "zero-shot")


def test_a_picture_finds_itself(search: Search) -> None:
    hits = search.by_picture(images.open_image("data/tiny/images/3.png", 200), 3)
    assert Path(os.fsdecode(hits[0].path)) == Path("data/tiny/images/3.png").resolve()
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_text_finds_the_pictures_of_the_largest_cosine(search: Search) -> None:
    words = tiny.CAPTIONS[1]
    ids = text.tokenize(words, [], search.network.spec.context_length).ids
    told = search.network.encode_texts(ids[None], normalize=True)[0].detach().numpy()
    expected = {}
    for ids, vectors in search.index.vectors():
        paths = search.index.paths(ids.tolist())
        expected |= {
            paths[one]: float(vector @ told) for one, vector in zip(ids.tolist(), vectors, strict=True)
        }
    hits = search.by_text(words, 100)
    assert {os.path.basename(hit.path): hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)


def test_an_empty_text_and_an_empty_index_are_refused(search: Search, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        search.by_text(" \n", 3)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a")
    index.run(tiny.params(), tmp_path / "texts", Path("empty"), MODEL, "zero-shot")
    with pytest.raises(UserError, match="empty: holds no picture"):
        Search(tiny.params(), Path("empty"), MODEL, "zero-shot")
    with pytest.raises(UserError, match=r"nowhere: no index; `goal index FOLDER --index nowhere` makes it"):
        Search(tiny.params(), Path("nowhere"), MODEL, "zero-shot")
    with pytest.raises(UserError, match=r"index: made by zero-shot \(custom, .*, not by stage1 \("):
        Search(tiny.params(), PLACE, Path("models/stage1"), "stage1")


def test_ten_thousand_words_are_cut_where_the_context_ends(search: Search) -> None:
    words = "The tree is green. " * 2500
    assert len(search.by_text(words, 3)) == 3
    found = reading(words, 77)
    assert (found.tokens, found.read) == (2500 * 5 + 2, 77)
    # 75 tokens of five a sentence, the full stop among them.
    assert found.head == ("The tree is green. " * 15).strip()
    assert found.head + found.rest == words.strip()


def test_a_short_text_is_read_to_its_end() -> None:
    found = reading(" A cat. ", 77)
    assert (found.tokens, found.read, found.head, found.rest) == (5, 5, "A cat.", "")


def test_models_have_names(search: Search) -> None:
    assert named.find("zero-shot") == MODEL
    assert named.find("models/stage1") == Path("models/stage1")
    with pytest.raises(
        UserError, match=r"stage2: no weights at models/stage2/.*; name a path, or one of champion"
    ):
        named.find("stage2")
