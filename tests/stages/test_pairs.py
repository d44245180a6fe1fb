"""LISM on small drawn sets: the same pairs as one picture at a time, nothing lost, every loss counted."""

import json
import os
import weakref
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageColor

from goal import clip, config, text, weights
from goal.config import paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.mining import matching, shards
from goal.mining import summary as mining_summary
from goal.mining.mined import PAIRS, SIDES
from goal.model.network import GoalClip
from goal.reporting import cards, contact_sheet, pictures
from goal.stages import pairs, regions
from tests import drawn
from tests.drawn import digests, params
from tests.tiny import SPEC

LONG = "A red ball lies on the green grass beside " + "the very old and tall tree, " * 20 + "alone."
CAPTIONS = (LONG, "", "   ", "Ball", "😀 🎈 🚀", "كرة حمراء على العشب. شجرة طويلة.", "A ball. " * 500)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return drawn.make(tmp_path, monkeypatch)


def read(split: str = "train") -> list[dict]:
    files = sorted(paths.pairs_dir(split).glob("shard-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def summary(split: str = "train") -> dict:
    return json.loads((paths.pairs_dir(split) / "summary.json").read_text())


def mine(given: config.Params) -> list[dict]:
    regions.run(given)
    pairs.run(given)
    return read()


def with_captions(*captions: tuple[str, ...]) -> None:
    """Give the train pictures, as far as they go, these captions instead."""
    rows = manifest.read(paths.manifest("drawn", "train"))
    changed = [Row(**{**vars(row), "captions": new}) for row, new in zip(rows, captions, strict=False)]
    manifest.write(changed, paths.manifest("drawn", "train"))


def test_captions_in_another_language_than_the_sentences_warn(project: Path, caplog) -> None:
    with_captions(*((f"Das Bild {number} ist rot und auf der Wand.",) for number in range(3)))
    mine(params())
    assert "the captions look German, pairs.sentences: embedded is English" in caplog.text
    assert "punkt_tab/german" in caplog.text


def naive(row: Row, boxes: list[tuple]) -> list[tuple[tuple, float]]:
    """LISM as the paper tells it: one picture, one crop, one sentence at a time."""
    model = weights.load("models/base").eval()
    see = clip.preprocess(model.spec)
    image = Image.open(row.image)
    best = []
    with torch.inference_mode():
        crops = [
            model.encode_images(see(image.crop(tuple(map(round, box))))[None], normalize=True)
            for box in boxes
        ]
        for one in text.split_sentences(row.captions[0]):
            ids = text.tokenize(one.text, [], model.spec.context_length).ids
            sentence = model.encode_texts(ids[None], normalize=True)
            cosines = [float((crop * sentence).sum()) for crop in crops]
            place = int(np.argmax(cosines))
            best.append((boxes[place], cosines[place]))
    return best


def test_pairs_equal_those_of_one_picture_at_a_time(project):
    found = mine(params(regions={"sources": ["fixed"]}))
    for row in manifest.read(paths.manifest("drawn", "train")):
        half = 48
        boxes = [(0, 0, 96, 96)]
        boxes += [(x, y, x + half, y + half) for x, y in ((0, 0), (48, 0), (0, 48), (48, 48), (24, 24))]
        mined = [one for one in found if one["id"] == row.id]
        wanted = naive(row, boxes)
        assert [tuple(one[side] for side in SIDES) for one in mined] == [box for box, _ in wanted]
        assert [one["similarity"] for one in mined] == pytest.approx([c for _, c in wanted], abs=1e-5)
        assert {one["dropped"] for one in mined if one["source"] == "whole"} <= {"whole image wins"}
        assert {one["dropped"] for one in mined if one["source"] == "fixed"} <= {""}
    assert len({one["source"] for one in found}) == 2


def test_sentences_are_those_of_the_caption_in_order(project):
    found = mine(params())
    for row in manifest.read(paths.manifest("drawn", "train")):
        mined = [one for one in found if one["id"] == row.id]
        assert [one["sentence"] for one in mined] == list(range(len(mined)))
        spans = [(one.start, one.end) for one in text.split_sentences(row.captions[0])]
        assert [(one["start"], one["end"]) for one in mined] == spans
    assert [one["id"] for one in found] == sorted(one["id"] for one in found)


def test_every_caption_of_a_picture_is_matched(project):
    with_captions(("A red ball. A tree.", "", "A blue square."))
    found = mine(params())
    assert [(one["caption"], one["sentence"]) for one in found] == [(0, 0), (0, 1), (2, 0)]
    assert summary()["captions_without_sentence"] == 1


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_bytes(project, workers):
    mine(params())
    first = digests(project / "regions"), digests(project / "pairs")
    for folder in ("work/regions", "work/pairs"):
        os.rename(folder, f"{folder}-before")
    mine(params(regions={"workers": workers}, pairs={"workers": workers}))
    assert (digests(project / "regions"), digests(project / "pairs")) == first


def test_what_is_finished_is_kept_when_only_the_workers_change(project):
    mine(params())
    finished = {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")}
    mine(params(regions={"workers": 3}, pairs={"workers": 3, "contact_sheet": 1}))
    assert {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")} == finished
    mine(params(regions={"min_area": 0.02}, pairs={"batch_size": 8}))
    after = {path: path.stat().st_mtime_ns for path in (project / "work").rglob("shard-*.parquet")}
    assert not set(after) & set(finished)


def test_another_matcher_reads_the_regions_and_makes_none(project):
    mine(params())
    before = {path: path.stat().st_mtime_ns for path in (project / "regions").rglob("*")}
    torch.manual_seed(1)
    weights.save(GoalClip(SPEC), project / "other.safetensors")
    one = [row["similarity"] for row in read()]
    pairs.run(params(pairs={"matcher": "other.safetensors"}))
    assert [row["similarity"] for row in read()] != one
    assert {path: path.stat().st_mtime_ns for path in (project / "regions").rglob("*")} == before


def test_fault_8_a_sentence_beyond_the_context_keeps_its_picture(project):
    """The release loses the whole image, silently; here the sentence is cut, used and counted."""
    assert len(text.tokenize(LONG, [], 1000).ids) > 77
    with_captions((LONG,), ("A ball.",))
    found = mine(params())
    assert [(one["id"], one["truncated"]) for one in found] == [("train-0", True), ("train-1", False)]
    assert found[0]["similarity"] is not None
    assert (found[0]["start"], found[0]["end"]) == (0, len(LONG))
    assert summary()["truncated"] == 1
    assert summary()["pictures"] == 2


def test_odd_captions_are_used_or_counted(project):
    with_captions(*((caption,) for caption in CAPTIONS))
    found = mine(params())
    assert {one["id"] for one in found} == {f"train-{number}" for number in (0, 3, 4, 5, 6)}
    assert summary()["captions_without_sentence"] == 2
    assert summary()["sentences"] == len(found) == 1 + 1 + 1 + 2 + 500


def test_pictures_that_went_are_counted_with_the_reason(project):
    Path("data/drawn/images/train-1.png").unlink()
    Image.new("RGB", (10, 10)).save("data/drawn/images/train-2.png")
    Path("data/drawn/images/train-3.png").write_bytes(b"")
    found = mine(params())
    lost = [one for one in found if one["id"] in ("train-1", "train-2", "train-3")]
    assert {(one["dropped"], one["similarity"]) for one in lost} == {("unreadable picture", None)}
    reasons = {"not found": 1, "not of the manifest's size": 1, "empty file": 1}
    assert summary()["unreadable"] == reasons
    assert summary()["dropped"]["unreadable picture"] == len(lost)
    assert json.loads(Path("regions/train/summary.json").read_text())["unreadable"] == reasons


def test_pictures_without_regions_keep_the_reason(project):
    found = mine(params(regions={"sources": ["fixed"], "min_area": 0.6}))
    assert {one["dropped"] for one in found} == {"no regions"}
    assert {tuple(one[side] for side in SIDES) for one in found} == {(0, 0, 96, 96)}
    assert (summary()["pairs"], summary()["pictures_with_pair"]) == (0, 0)
    assert Image.open("pairs/contact-sheet.png").size[0] > 100


def test_a_region_of_all_pixels_is_the_whole_picture(project):
    given = params(regions={"sources": ["fixed"]})
    regions.run(given)
    for path in Path("regions/train").glob("shard-*.parquet"):
        table = pq.read_table(path)
        sides = {"x1": 0.0, "y1": 0.0, "x2": 96.0, "y2": 95.5}
        for side, value in sides.items():
            column = pa.array([value] * len(table), pa.float32())
            table = table.set_column(table.column_names.index(side), side, column)
        pq.write_table(table, path)
    pairs.run(given)
    assert {one["dropped"] for one in read()} == {"no regions"}


def test_regions_of_another_manifest_are_refused(project):
    regions.run(params())
    with_captions(("Another.",))
    with pytest.raises(
        UserError, match=r"regions/train: made for another .*train\.parquet; `dvc repro regions`"
    ):
        pairs.run(params())


def test_missing_inputs_are_one_line(project):
    with pytest.raises(UserError, match=r"regions/train/summary\.json: cannot be read; `dvc repro regions`"):
        pairs.run(params())
    regions.run(params())
    Path("regions/train/shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.parquet: not found; `dvc repro regions` writes it"):
        pairs.run(params())
    with pytest.raises(UserError, match=r"none/train\.parquet: not found; `dvc repro data`"):
        regions.run(params(data={"name": "none"}))


def test_an_unknown_matcher_is_one_line(project):
    regions.run(params())
    with pytest.raises(UserError, match="no-such-file"):
        pairs.run(params(pairs={"matcher": "no-such-file.safetensors"}))


def test_the_summary_adds_up(project):
    found = mine(params())
    counts = summary()
    assert counts["pictures"] == 7
    assert counts["sentences"] == len(found) == counts["pairs"] + sum(counts["dropped"].values())
    assert counts["pairs"] == sum(counts["winners"].values()) == sum(counts["similarity"]["counts"])
    usable = [one for one in found if not one["dropped"]]
    assert counts["pictures_with_pair"] == len({one["id"] for one in usable})
    assert counts["similarity"]["mean"] == pytest.approx(
        np.mean([one["similarity"] for one in usable]), abs=1e-5
    )
    truth = manifest.read_table(Path("data/drawn/truth.parquet"), manifest.TRUTH).to_pylist()
    assert counts["truth"]["sentences"] == sum(line["id"].startswith("train") for line in truth)


def test_the_truth_scores_each_thing_by_its_sentences_box(project):
    def line(name: str, start: int, box: tuple) -> dict:
        where = {"id": name, "caption": 0, "sentence": 0, "start": start, "end": start + 5}
        rest = {"similarity": 0.3, "source": "fixed", "truncated": False, "dropped": ""}
        return where | dict(zip(SIDES, box, strict=True)) | rest

    boxes = {"a": (0, 0, 10, 10), "b": (20, 20, 40, 40), "c": (0, 0, 8, 8), "elsewhere": (0, 0, 9, 9)}
    truth = [
        {"id": name, "caption": 0, "start": 0, "end": 5, **dict(zip(SIDES, box, strict=True))}
        for name, box in boxes.items()
    ]
    manifest.write_table(manifest.table(truth, manifest.TRUTH), Path("data/drawn/truth.parquet"))
    # Half of a; all of b, but for a sentence cut elsewhere; c with an overlap of a quarter.
    mined = [line("a", 0, (0, 0, 10, 5)), line("b", 1, (20, 20, 40, 40)), line("c", 0, (0, 0, 4, 4))]
    notes = {"pictures": 3, "captions": 3, "captions_without_sentence": 0, "unreadable": {}}
    shards.write(shards.with_notes(pa.Table.from_pylist(mined, PAIRS), notes), Path("shard.parquet"))
    score = mining_summary.of([Path("shard.parquet")], "drawn")["truth"]
    assert score == {
        "sentences": 3,
        "matched": 1,
        "matched_share": pytest.approx(1 / 3, abs=1e-6),
        "mean_iou": pytest.approx((0.5 + 0 + 0.25) / 3, abs=1e-6),
    }


def test_the_contact_sheet_holds_few_pictures_at_a_time(project, monkeypatch):
    read, seen, held = cards.open_image, [], []

    def counted(*arguments):
        image = read(*arguments)
        seen.append(weakref.ref(image))
        held.append(sum(one() is not None for one in seen))
        return image

    mine(params(pairs={"contact_sheet": 6}))
    monkeypatch.setattr(cards, "open_image", counted)
    written = sorted(Path("pairs/train").glob("shard-*.parquet"))
    contact_sheet.write(written, paths.manifest("drawn", "train"), 6, 1.0, Path("sheet.png"))
    assert len(held) >= 5
    assert max(held) <= 2
    assert Path("sheet.png").read_bytes() == Path("pairs/contact-sheet.png").read_bytes()


def test_the_contact_sheet_outlines_in_the_colours_of_the_sentences(project):
    mine(params())
    colours = {colour for _, colour in Image.open("pairs/contact-sheet.png").getcolors(1 << 24)}
    assert {ImageColor.getrgb(pictures.colour(number)) for number in (1, 2)} <= colours


def test_a_last_bit_does_not_choose_between_equal_candidates() -> None:
    """Crops of the same pixels differ by rounding; so do equal sentences, which are compared once."""
    whole, *parts = [matching.Candidate((0.0, 0.0, side, side), str(side)) for side in (9.0, 8.0, 7.0)]
    cosines = np.array([[0.3], [0.3 + 1e-7], [0.29]], dtype=np.float32)
    assert [choice.candidate for choice in matching._nearest(cosines, [whole, *parts])] == [whole]
    cosines[2] = 0.31
    assert [choice.candidate for choice in matching._nearest(cosines, [whole, *parts])] == [parts[1]]


def test_a_sentence_that_occurs_twice_makes_the_same_choice(project):
    with_captions(("A red ball. A blue square. A red ball.", "A red ball."))
    found = [one for one in mine(params()) if one["sentence"] != 1]
    for _, same in groupby(sorted(found, key=itemgetter("id")), key=itemgetter("id")):
        assert len({(one["similarity"], *(one[side] for side in SIDES)) for one in same}) == 1
