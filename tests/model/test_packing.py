"""Texts in shared rows: every token once, nobody sees a neighbour, little padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goal.model.packing import attention_mask, lay, pack, span_weights, width

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)
EOS = 999


def texts(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    # 0 is a token too.
    bodies = [torch.randint(0, EOS - 1, (length - 1,), generator=draw) for length in lengths]
    return [torch.cat([body, torch.tensor([EOS])]) for body in bodies]


def best_fit(lengths: list[int]) -> int:
    """Tokens of the rows that best-fit decreasing makes, rows being as long as the longest text."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, left in enumerate(room) if left >= length]
        if not fitting:
            room.append(max(lengths))
            fitting = [len(room) - 1]
        room[min(fitting, key=room.__getitem__)] -= length
    return len(room) * max(lengths)


@given(LENGTHS)
def test_every_text_lies_in_one_row_that_holds_it(lengths: list[int]) -> None:
    layout = lay(lengths)
    assert sorted(item for row in layout for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= width(lengths, layout) for row in layout)
    assert all(layout)


@given(LENGTHS)
def test_every_token_comes_back(lengths: list[int]) -> None:
    given_texts = texts(lengths)
    packed = pack(given_texts)
    seen = torch.zeros_like(packed.ids, dtype=torch.bool)
    for item, text in enumerate(given_texts):
        place = (packed.rows[item], slice(packed.starts[item], packed.ends[item]))
        assert torch.equal(packed.ids[place], text)
        assert torch.equal(packed.positions[place], torch.arange(len(text)))
        assert (packed.segments[place] == item + 1).all()
        assert packed.ids[packed.rows[item], packed.eos[item]] == EOS
        assert not seen[place].any()
        seen[place] = True
    assert (packed.ids[~seen] == 0).all()
    assert (packed.segments[~seen] == 0).all()


def test_padding_before_packing_changes_nothing() -> None:
    given_texts = texts([5, 30, 12])
    padded = [torch.cat([text, torch.zeros(9, dtype=torch.long)]) for text in given_texts]
    for plain, from_padded in zip(pack(given_texts), pack(padded), strict=True):
        assert torch.equal(plain, from_padded)


def test_the_text_stands_at_its_largest_id() -> None:
    # A caption that writes out the end token keeps what follows; CLIP takes the first end.
    packed = pack([torch.tensor([998, 5, EOS, 7, EOS])])
    assert packed.eos.tolist() == [2]
    assert packed.ends.tolist() == [5]


@given(LENGTHS)
def test_a_token_sees_itself_and_what_came_before_in_its_text(lengths: list[int]) -> None:
    segments = pack(texts(lengths)).segments
    mask = attention_mask(segments, torch.float32)
    rows, length = segments.shape
    assert mask.shape == (rows, 1, length, length)
    for row in range(rows):
        for query in range(0, length, 7):
            allowed = [key for key in range(query + 1) if segments[row, key] == segments[row, query]]
            assert (mask[row, 0, query] == 0).nonzero()[:, 0].tolist() == allowed
            assert set(mask[row, 0, query].tolist()) <= {0.0, float("-inf")}


def test_captions_with_their_sentences_leave_little_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    ours = plain = 0
    for _ in range(20):
        captions = torch.randint(80, 249, (8,), generator=draw).tolist()
        lengths = captions + torch.randint(9, 40, (8,), generator=draw).tolist()
        ours += pack(texts(lengths)).ids.numel() / sum(lengths)
        plain += best_fit(lengths) / sum(lengths)
    assert ours / 20 < 1.06
    assert ours < plain


def test_span_weights_give_means_over_spans() -> None:
    given_texts = texts([9, 20, 6])
    packed = pack(given_texts)
    tokens = torch.randn(*packed.ids.shape, 4)
    which, spans = torch.tensor([1, 0, 1, 2]), torch.tensor([[3, 8], [0, 9], [19, 20], [2, 3]])
    means = span_weights(packed, which, spans).flatten(1) @ tokens.flatten(0, 1)
    for mean, text, (start, end) in zip(means, which, spans, strict=True):
        own = tokens[packed.rows[text], packed.starts[text] : packed.ends[text]]
        torch.testing.assert_close(mean, own[start:end].mean(0))


def test_spans_do_not_reach_into_the_neighbour() -> None:
    packed = pack(texts([9, 20, 6, 8]))
    which = torch.arange(4)
    weights = span_weights(packed, which, torch.tensor([[2, 4], [4, 99], [6, 9], [3, 3]]))
    for text, weight in zip(which, weights, strict=True):
        assert (packed.segments[weight > 0] == text + 1).all()
    torch.testing.assert_close(weights.sum((1, 2)), torch.tensor([1.0, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize("nothing", [[], [torch.zeros(3, dtype=torch.long)]])
def test_nothing_to_pack_is_refused(nothing: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="pack: "):
        pack(nothing)
