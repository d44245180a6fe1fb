"""Batches of the training pictures: their order, pairs, masks, padding and counts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from goal import boxes
from goal.boxes import View
from goal.config import PairChoice
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.text import split_sentences, tokenize
from goal.training import batches, examples
from goal.training.batches import BatchSampler, Collate
from goal.training.examples import Examples, Fault, Key, LocalPair, Needs, Pair, Sample
from tests import trainings
from tests.trainings import SPEC

ALL = Needs(crops=True, sentences=True, short=False)
BEST = PairChoice(pick="best", per_step=1, top=3, min_similarity=-1.0, min_visible=0.25)


@pytest.fixture(autouse=True)
def _in_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(
    rows: list[Row],
    pairs: dict[str, list[Pair]] | None,
    needs: Needs = ALL,
    seed: int = 0,
    min_visible: float = 0.25,
) -> Examples:
    return Examples(rows, pairs, SPEC, needs, seed, 200.0, min_visible)


def mined(
    rows: list[Row], choice: PairChoice = BEST, without: frozenset[int] = frozenset()
) -> dict[str, list[Pair]]:
    trainings.write_pairs(trainings.pairs(rows, without))
    return examples.read_pairs(Path("pairs/train"), choice)


def only(sample: Sample) -> LocalPair:
    (pair,) = sample.pairs
    return pair


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_together_get_each_batch_once(world: int) -> None:
    whole = list(BatchSampler(37, 8, 3, 5, 0, 0, 1))
    ranks = [list(BatchSampler(37, 8, 3, 5, 0, rank, world)) for rank in range(world)]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole
    assert len(whole) == 3 * 4
    for epoch in range(3):
        seen = [key.index for step in whole for key in step if key.epoch == epoch]
        assert len(set(seen)) == len(seen) == 32
        assert set(seen) <= set(range(37))


def test_each_epoch_and_seed_has_its_own_order() -> None:
    sampler = BatchSampler(32, 8, 2, 5, 0, 0, 1)
    first, second = (
        [key.index for step in range(4 * e, 4 * e + 4) for key in sampler.batch(step)] for e in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second
    assert list(BatchSampler(32, 8, 2, 6, 0, 0, 1)) != list(sampler)
    assert list(BatchSampler(32, 8, 2, 5, 0, 0, 1)) == list(sampler)


def test_the_sampler_can_start_at_any_step() -> None:
    whole = list(BatchSampler(20, 4, 2, 1, 0, 0, 1))
    for step in range(11):
        rest = BatchSampler(20, 4, 2, 1, step, 0, 1)
        assert list(rest) == whole[step:]
        assert len(rest) == 10 - step


@pytest.mark.parametrize(
    ("size", "pictures", "world", "words"),
    [
        (16, 10, 1, "has only 10 pictures"),
        (10, 30, 4, "train.processes 4"),
        (2, 30, 4, "set 4"),
    ],
)
def test_batch_sizes_that_do_not_fit_are_refused(size: int, pictures: int, world: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        batches.check("stage1", size, pictures, world, "data/x/train.parquet")
    assert "stage1.batch_size" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_best_pair_is_chosen_and_a_tie_goes_to_the_first_sentence() -> None:
    rows = trainings.rows(3, Path("images"))
    lines = trainings.pairs(rows)
    for line in lines:
        line["similarity"] = 0.5 if line["sentence"] > 0 else 0.2
    trainings.write_pairs(lines[::-1])
    found = examples.read_pairs(Path("pairs/train"), BEST)
    assert [pair.sentence for pairs in found.values() for pair in pairs] == [1, 1, 1]
    data = made(rows, found)
    assert all(torch.equal(only(data[Key(0, 0)]).sentence, only(data[Key(e, 0)]).sentence) for e in range(5))


def test_sampling_draws_from_the_top_by_seed_and_epoch() -> None:
    rows = trainings.rows(6, Path("images"))
    choice = BEST.model_copy(update={"pick": "sample", "top": 2})
    pairs = mined(rows, choice)
    assert all(len(own) == 2 and own[0].similarity >= own[1].similarity for own in pairs.values())
    everything = trainings.pairs(rows)
    for name, own in pairs.items():
        best = sorted(line["similarity"] for line in everything if line["id"] == name)[-2:]
        assert sorted(pair.similarity for pair in own) == pytest.approx(best)
    keys = [Key(epoch, index) for epoch in range(6) for index in range(6)]
    chosen = [only(made(rows, pairs)[key]).span for key in keys]
    assert chosen == [only(made(rows, pairs)[key]).span for key in keys]
    assert chosen != [only(made(rows, pairs, seed=1)[key]).span for key in keys]
    assert len({only(made(rows, pairs)[Key(epoch, 0)]).span for epoch in range(12)}) == 2


def test_several_pairs_of_a_step_differ_and_are_of_its_caption() -> None:
    """The captions take turns, and each brings its own pairs; a caption without any trains without them."""
    (row,) = trainings.rows(1, Path("images"))
    captions = (row.captions[0], "No pair here. None at all.", "A red ball. A blue car. A white lamp.")
    row = replace(row, captions=captions)
    lines = [line for line in trainings.pairs([row]) if line["caption"] != 1]
    trainings.write_pairs(lines)
    for choice in (BEST, BEST.model_copy(update={"pick": "sample"})):
        choice = choice.model_copy(update={"per_step": 2})
        found = examples.read_pairs(Path("pairs/train"), choice)
        data = Examples([row], found, SPEC, ALL, 0, 200.0, 0.25, per_step=2)
        for epoch in range(12):
            sample, caption = data[Key(epoch, 0)], captions[epoch % 3]
            assert torch.equal(sample.caption, tokenize(caption, [], SPEC.context_length).ids)
            own = {line["start"]: line for line in lines if line["caption"] == epoch % 3}
            texts = [tuple(pair.sentence.tolist()) for pair in sample.pairs]
            assert len(set(texts)) == len(texts) == (0 if epoch % 3 == 1 else 2)
            best = sorted(own.values(), key=lambda line: -line["similarity"])[
                : 2 if choice.pick == "best" else 3
            ]
            allowed = {
                tuple(tokenize(caption[line["start"] : line["end"]], [], SPEC.context_length).ids.tolist())
                for line in best
            }
            assert set(texts) <= allowed


def test_dropped_pairs_and_those_below_min_similarity_are_not_used() -> None:
    rows = trainings.rows(4, Path("images"))
    high = BEST.model_copy(update={"min_similarity": 0.3})
    found = mined(rows, high, frozenset({2}))
    usable = {
        line["id"] for line in trainings.pairs(rows, {2}) if line["similarity"] >= 0.3 and not line["dropped"]
    }
    assert set(found) == usable
    assert rows[2].id not in found
    assert all(pair.similarity >= 0.3 for own in found.values() for pair in own)


def test_a_sample_holds_the_crop_the_span_and_the_patches_of_its_pair() -> None:
    rows = trainings.rows(5, Path("images"))
    pairs = mined(rows)
    data = made(rows, pairs)
    for index, row in enumerate(rows):
        sample, pair = data[Key(0, index)], pairs[row.id][0]
        sentence = row.captions[0][pair.start : pair.end]
        own = split_sentences(row.captions[0])
        tokens = tokenize(row.captions[0], own, SPEC.context_length)
        found = only(sample)
        assert found.span == tokens.spans[[one.text for one in own].index(sentence)]
        assert torch.equal(found.sentence, tokenize(sentence, [], SPEC.context_length).ids)
        assert torch.equal(sample.caption[slice(*found.span)], found.sentence[1:-1])
        view = View((row.width, row.height), SPEC.image_size, SPEC.view)
        if view.visible(pair.box) >= 0.25:
            mask = boxes.patch_mask(view.box_to_view(pair.box), SPEC.image_size, SPEC.patch_size)
            assert torch.equal(found.patches, mask)
        else:
            assert found.patches is None


def test_a_box_mostly_out_of_view_keeps_its_crop_but_not_its_patches() -> None:
    rows = trainings.rows(1, Path("images"))
    row = Row("wide", rows[0].image, rows[0].width, rows[0].height, rows[0].captions, "tiny")
    wide = row.width > row.height
    box = (0.0, 0.0, 5.0, float(row.height)) if wide else (0.0, 0.0, float(row.width), 5.0)
    pair = Pair(0, 0, 0, 20, box, 0.5)
    visible = View((row.width, row.height), SPEC.image_size, SPEC.view).visible(box)
    assert 0 <= visible < 1
    below, above = (
        made([row], {row.id: [pair]}, min_visible=limit) for limit in (visible + 0.01, max(visible - 0.01, 0))
    )
    assert only(below[Key(0, 0)]).patches is None
    assert only(below[Key(0, 0)]).crop is not None
    assert below.counts()["pairs_out_of_view"] == 1
    if visible:
        assert only(above[Key(0, 0)]).patches is not None
        assert above.counts()["pairs_out_of_view"] == 0


def test_a_sentence_beyond_the_context_trains_locally_without_a_span() -> None:
    """The released code drops such images silently."""
    rows = trainings.rows(1, Path("images"))
    caption = " ".join(f"Sentence number {n} names a red ball." for n in range(20))
    row = Row("long", rows[0].image, rows[0].width, rows[0].height, (caption,), "tiny")
    sentences = split_sentences(caption)
    pairs = {"long": [Pair(0, 19, sentences[-1].start, sentences[-1].end, (1.0, 1.0, 30.0, 30.0), 0.5)]}
    data = made([row], pairs)
    sample = data[Key(0, 0)]
    assert only(sample).span is None
    assert only(sample).crop is not None
    assert len(sample.caption) == SPEC.context_length
    assert data.counts()["pairs_beyond_context"] == 1
    (batch,) = Collate(SPEC, 0)([sample]).chunks()
    assert batch.has_pair.tolist() == [[True]]
    assert batch.in_context.tolist() == [[False]]


def test_pictures_without_a_pair_are_used_and_captions_alternate() -> None:
    rows = trainings.rows(2, Path("images"))
    rows[0] = Row(
        rows[0].id, rows[0].image, rows[0].width, rows[0].height, ("a cat", "two dogs", "a bird"), "tiny"
    )
    data = made(rows, {})
    drawn = [tuple(data[Key(epoch, 0)].caption.tolist()) for epoch in range(3)]
    assert len(set(drawn)) == 3
    sample = data[Key(0, 1)]
    assert sample.pairs == []
    counts = data.counts()
    assert (counts["pictures"], counts["captions"], counts["pairs"]) == (2, 4, 0)
    assert counts["pictures_without_pair"] == 2


@pytest.mark.parametrize("chunk", [0, 1, 2, 3])
def test_chunks_keep_every_part_with_its_pair(chunk: int) -> None:
    rows = trainings.rows(5, Path("images"))
    data = made(rows, mined(rows, without=frozenset({1, 3})))
    samples = [data[Key(0, index)] for index in range(5)]
    chunks = Collate(SPEC, chunk)(samples).chunks()
    assert [len(part.spans) for part in chunks] == {0: [5], 1: [1] * 5, 2: [2, 2, 1], 3: [3, 2]}[chunk]
    assert torch.cat([part.has_pair for part in chunks]).flatten().tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]
    first = 0
    for part in chunks:
        own = samples[first : first + len(part.spans)]
        first += len(own)
        assert torch.equal(part.images[: len(own)], torch.stack([sample.whole for sample in own]))
        texts = [sample.caption for sample in own]
        texts += [pair.sentence for sample in own for pair in sample.pairs]
        rows_of_texts = [row for group in part.texts for row in group]
        assert len(rows_of_texts) == len(texts) == len(part.places)
        for place, text in zip(part.places.tolist(), texts, strict=True):
            assert torch.equal(rows_of_texts[place][: len(text)], text)
            assert not rows_of_texts[place][len(text) :].any()
        for place, row in enumerate(part.rows.tolist()):
            assert torch.equal(part.images[len(own) + place], only(own[row]).crop)
        for row, sample in enumerate(own):
            assert tuple(part.spans[row, 0].tolist()) == (only(sample).span if sample.pairs else (0, 0))


def test_parts_that_no_loss_term_needs_are_not_read() -> None:
    rows = trainings.rows(3, Path("images"))
    pairs = mined(rows)
    sample = made(rows, pairs, Needs.of({"global": 1.0}))[Key(0, 0)]
    assert (sample.pairs, sample.short) == ([], None)
    assert Needs.of({"local": 0.5}) == Needs(True, True, False)
    assert Needs.of({"tsl_image": 1.0}) == Needs(True, False, False)
    assert Needs.of({"tsl_text": 1.0}) == Needs(False, True, False)
    assert Needs.of({"short_caption": 1.0}) == Needs(False, False, True)
    attention = {"sentence_patches": 1.0, "attention_temperature": 0.2}
    assert Needs.of(attention) == Needs(False, True, False, attention=0.2)
    assert Needs.of({"late_interaction": 1.0}) == Needs(False, False, False, tokens=True)


def test_short_captions_are_sentences_after_the_first() -> None:
    rows = trainings.rows(2, Path("images"))
    rows[1] = Row(rows[1].id, rows[1].image, rows[1].width, rows[1].height, ("only one sentence.",), "tiny")
    data = made(rows, None, Needs(False, False, True))
    sentences = [
        tokenize(one.text, [], 40).ids[1:-1].tolist() for one in split_sentences(rows[0].captions[0])
    ]
    allowed = {tuple(sentences[1]), tuple(sentences[2]), tuple(sentences[1] + sentences[2])}
    drawn = {tuple(data[Key(epoch, 0)].short.tolist()[1:-1]) for epoch in range(20)}
    assert drawn == allowed
    single = data[Key(0, 1)]
    assert torch.equal(single.short, single.caption)
    # Own short captions come first, for the pictures that have some.
    own = Examples(
        rows,
        None,
        SPEC,
        Needs(False, False, True),
        0,
        200.0,
        0.25,
        short={rows[0].id: ("A ball.", "One thing.")},
    )
    given = {tuple(tokenize(text, [], 40).ids.tolist()) for text in ("A ball.", "One thing.")}
    assert {tuple(own[Key(epoch, 0)].short.tolist()) for epoch in range(20)} == given
    assert torch.equal(own[Key(0, 1)].short, own[Key(0, 1)].caption)


def test_a_picture_of_another_size_than_its_manifest_is_refused() -> None:
    rows = trainings.rows(1, Path("images"))
    row = Row(rows[0].id, rows[0].image, rows[0].width + 1, rows[0].height, rows[0].captions, "tiny")
    found = made([row], None, Needs(False, False, False))[Key(0, 0)]
    assert isinstance(found, Fault)
    assert "manifest" in found.message


def test_pairs_of_other_data_are_refused() -> None:
    rows = trainings.rows(2, Path("images"))
    pairs = mined(rows)
    with pytest.raises(UserError, match="is no training picture"):
        examples.check_pairs(rows[:1], pairs, Path("pairs/train"))
    changed = [Row(row.id, row.image, row.width, row.height, ("short",), "tiny") for row in rows]
    with pytest.raises(UserError, match="other captions"):
        examples.check_pairs(changed, pairs, Path("pairs/train"))
    with pytest.raises(UserError, match="no mined pairs"):
        examples.read_pairs(Path("nowhere"), BEST)
