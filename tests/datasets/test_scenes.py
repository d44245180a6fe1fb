"""Drawn scenes: the same for the same seed, and the tables say what the pictures show."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from goal import regions, text
from goal.cleaning import clean
from goal.datasets import manifest, scenes_render
from goal.datasets.scenes_layout import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    FADES,
    FAMILY,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    change,
    draw,
    scene_of,
    stream,
)
from goal.datasets.scenes_words import (
    CLOSE_UPS,
    PATTERN_WORDS,
    SIZE_WORDS,
    close_caption,
    direction,
    long_caption,
    short_caption,
)
from goal.stages import data as stage
from tests.datasets.conftest import Build

SIZE = 128
SMALL = {"train": 12, "val": 3, "test": 8, "twins": 5, "image_size": SIZE}
CLIP_TOKENS, CONTEXT = 77, 248

KINDS = ("train", "val", "test", "twins", "short", "short_val")


def scenes(count: int, fewest: int = 2, most: int = 6) -> list[Scene]:
    return [draw(stream(0, "train", index, "layout"), fewest, most) for index in range(count)]


@pytest.fixture
def folder(build: Build) -> Path:
    stage.run(build(name="drawn", scenes=SMALL))
    return Path("data/drawn")


def rows(folder: Path, name: str) -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def iou(first: tuple, second: tuple) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second)) - shared)


def test_all_tables_and_pictures_are_there(folder: Path) -> None:
    tables = (*KINDS, "truth", "joint", "colours", "rejected")
    names = {f"{name}.parquet" for name in tables} | {"images", "summary.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name in KINDS:
        for row in rows(folder, name):
            with Image.open(row["image"]) as image:
                assert image.size == (row["width"], row["height"]) == (SIZE, SIZE)
    assert len(list((folder / "images").iterdir())) == 12 + 3 + 8 + 5
    summary = json.loads((folder / "summary.json").read_text())
    assert {split: counts["images"] for split, counts in summary["splits"].items()} == {
        "train": 12,
        "val": 3,
        "test": 8,
    }


def test_the_same_bytes_again_and_other_sizes_keep_the_pictures(build: Build, folder: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}

    stage.run(build(name="again", scenes=SMALL))
    stage.run(build(name="more", scenes=SMALL | {"train": 14, "test": 9, "twins": 6}))
    stage.run(build(name="other", scenes=SMALL, seed=1))
    first, again, more, other = (content(Path("data") / name) for name in ("drawn", "again", "more", "other"))
    pictures = {name: data for name, data in first.items() if name.endswith(".png")}
    assert pictures == {name: data for name, data in again.items() if name.endswith(".png")}
    assert first["truth.parquet"] == again["truth.parquet"]
    assert pictures.items() <= more.items()
    assert not set(pictures.values()) & set(other.values())
    captions = [
        {row["id"]: row["captions"] for row in rows(Path("data") / name, "test")}
        for name in ("drawn", "more")
    ]
    assert captions[0].items() <= captions[1].items()


def test_no_picture_comes_twice(folder: Path) -> None:
    pictures = [path.read_bytes() for path in (folder / "images").iterdir()]
    assert len(set(pictures)) == len(pictures)


def test_truth_names_each_things_sentence_and_box(folder: Path) -> None:
    captions = {row["id"]: row["captions"] for split in manifest.SPLITS for row in rows(folder, split)}
    truth = rows(folder, "truth")
    assert {row["id"] for row in truth} == set(captions)
    for row in truth:
        sentence = captions[row["id"]][row["caption"]][row["start"] : row["end"]]
        assert sentence[0].isupper()
        assert sentence[-1] == "."
        assert sum(colour in re.findall("[a-z]+", sentence) for colour in COLOURS) == 1
        assert sum(shape in re.findall("[a-z]+", sentence) for shape in SHAPES) == 1
        assert 0 <= row["x1"] < row["x2"] <= SIZE
        assert 0 <= row["y1"] < row["y2"] <= SIZE


def test_joint_has_one_crop_of_each_test_picture(folder: Path) -> None:
    test = {row["id"]: row for row in rows(folder, "test")}
    truth = {(row["id"], row["x1"], row["y1"]): row for row in rows(folder, "truth")}
    joint = rows(folder, "joint")
    assert [row["of"] for row in joint] == sorted(test)
    for row in joint:
        assert row["id"] == f"{row['of']}#crop"
        assert row["image"] == test[row["of"]]["image"]
        found = truth[row["of"], row["x1"], row["y1"]]
        assert row["caption"] == test[row["of"]]["captions"][0][found["start"] : found["end"]]


def test_twins_differ_from_their_picture_in_picture_and_caption(folder: Path) -> None:
    test = {row["id"]: row for row in rows(folder, "test")}
    twins = rows(folder, "twins")
    assert len(twins) == SMALL["twins"]
    for twin in twins:
        own = test[twin["twin_of"]]
        assert twin["attribute"] in ATTRIBUTES
        assert twin["captions"] != own["captions"]
        pixels = [np.asarray(Image.open(row["image"])).astype(int) for row in (own, twin)]
        changed = (np.abs(pixels[0] - pixels[1]).max(-1) > 8).mean()
        assert 0.001 < changed < 0.25


def test_change_changes_one_attribute_of_one_thing() -> None:
    seen = set()
    for index, scene in enumerate(scenes(200)):
        changed, attribute = change(scene, stream(0, "train", index, "twin"))
        seen.add(attribute)
        pairs = [
            (one, other) for one, other in zip(scene.things, changed.things, strict=True) if one != other
        ]
        assert len(pairs) == 1
        fields = {
            name for name in vars(pairs[0][0]) if getattr(pairs[0][0], name) != getattr(pairs[0][1], name)
        }
        assert fields == {attribute}
        assert len({thing.name for thing in changed.things}) == len(changed.things)
        assert len({thing.place for thing in changed.things}) == len(changed.things)
        assert (changed.background, changed.fade) == (scene.background, scene.fade)
    assert seen == set(ATTRIBUTES)


def test_scenes_in_a_row_have_the_same_colours_and_other_details() -> None:
    """Who sees colours only finds the picture of a caption once in FAMILY times."""
    families = [
        [scene_of(0, "test", first + number, 3, 6) for number in range(FAMILY)]
        for first in range(0, 60 * FAMILY, FAMILY)
    ]
    same = dict.fromkeys(("shape", "size", "pattern", "place"), 0)
    things = 0
    for family in families:
        looks = {(one.background, one.fade, tuple(thing.colour for thing in one.things)) for one in family}
        assert len(looks) == 1
        assert len({long_caption(one, stream(0, "test", 0, "words"))[0] for one in family}) == FAMILY
        for other in family[1:]:
            assert len({thing.name for thing in other.things}) == len(other.things)
            assert len({thing.place for thing in other.things}) == len(other.things)
            for thing, first in zip(other.things, family[0].things, strict=True):
                things += 1
                for name in same:
                    same[name] += getattr(thing, name) == getattr(first, name)
    # Half are drawn again, and some come out the same.
    assert all(0.45 < count / things < 0.8 for count in same.values()), same
    assert len({looks for family in families for looks in [family[0]]}) == len(families)


def test_twins_are_worded_alike() -> None:
    """Only sentences about the changed thing or its relations and colours may differ."""
    for index, scene in enumerate(scenes(100)):
        changed, attribute = change(scene, stream(0, "train", index, "twin"))
        texts = [long_caption(one, stream(0, "train", index, "words"))[0] for one in (scene, changed)]
        sentences = [[caption[s.start : s.end] for s in text.split_sentences(caption)] for caption in texts]
        assert len(sentences[0]) == len(sentences[1])
        differing = sum(one != other for one, other in zip(*sentences, strict=True))
        if attribute in ("size", "pattern"):
            assert differing == 1
        assert 1 <= differing <= len(sentences[0]) - len(scene.things)


def test_every_attribute_is_told() -> None:
    for index, scene in enumerate(scenes(100)):
        caption, spans = long_caption(scene, stream(0, "train", index, "words"))
        for thing, (start, end) in zip(scene.things, spans, strict=True):
            sentence = caption[start:end].lower()
            assert thing.colour in sentence
            assert thing.shape in sentence
            assert PLACES[thing.place] in sentence
            assert any(word in sentence for word in SIZE_WORDS[thing.size])
            told = {
                pattern for pattern in PATTERNS if any(words in sentence for words in PATTERN_WORDS[pattern])
            }
            assert told == {thing.pattern}


@pytest.mark.parametrize("count", range(2, 7))
def test_long_captions_are_longer_than_clips_context_and_fit_ours(count: int) -> None:
    for index, scene in enumerate(scenes(60, count, count)):
        caption, spans = long_caption(scene, stream(0, "train", index, "words"))
        assert CLIP_TOKENS < len(text.tokenize(caption, [], 10_000).ids) <= CONTEXT
        short = short_caption(scene, stream(0, "train", index, "short"))
        assert len(text.tokenize(short, [], CLIP_TOKENS).ids) < 30
        # The data stage writes them as they are drawn: nothing in them is to be cleaned.
        assert [clean(caption), clean(short)] == [caption, short]
        # The project's own splitter finds the same sentences.
        assert set(spans) <= {(s.start, s.end) for s in text.split_sentences(caption)}


def test_wording_varies() -> None:
    scene = scenes(1, 4, 4)[0]
    captions = {long_caption(scene, stream(0, "train", index, "words"))[0] for index in range(100)}
    assert len(captions) == 100
    close = {close_caption(scene.things[0], stream(0, "train", index, "words")) for index in range(100)}
    assert len(close) >= len(CLOSE_UPS)


def test_directions() -> None:
    def at(place: int) -> Thing:
        return Thing("star", "red", "small", "plain", place, (0.0, 0.0, 0.0))

    upper_left, top, middle, right = at(0), at(1), at(4), at(5)
    assert direction(upper_left, top)[0] == "to the left of"
    assert direction(right, middle)[0] == "to the right of"
    assert direction(top, middle)[0] == "above"
    assert direction(middle, top)[0] == "below"
    assert direction(upper_left, middle)[0] == "above and to the left of"
    assert direction(right, top)[0] == "below and to the right of"


def test_boxes_are_those_of_the_painted_pixels() -> None:
    for scene in scenes(40):
        _, boxes = scenes_render.render(scene, SIZE)
        empty = scenes_render.render(Scene((), scene.background, scene.fade), SIZE)[0].astype(int)
        for thing, box in zip(scene.things, boxes, strict=True):
            alone = scenes_render.render(Scene((thing,), scene.background, scene.fade), SIZE)[0]
            ys, xs = np.nonzero(np.abs(alone - empty).max(-1) > 40)
            assert iou(box, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)) > 0.8


def test_things_do_not_touch() -> None:
    for scene in scenes(200, 6, 6):
        _, boxes = scenes_render.render(scene, SIZE)
        assert max(iou(one, other) for i, one in enumerate(boxes) for other in boxes[:i]) == 0


def test_a_pattern_is_seen_and_is_fainter_than_the_thing() -> None:
    for pattern in PATTERNS:
        for paint in COLOURS:
            thing = Thing("square", paint, "large", pattern, 4, (0.0, 0.0, 0.0))
            picture, boxes = scenes_render.render(Scene((thing,), "grey", "even"), SIZE)
            x1, y1, x2, y2 = (int(side) for side in boxes[0])
            inside = picture[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(-1, 3).astype(int)
            spread = (
                np.abs(inside[:, None] - inside[None]).max() if len(inside) < 500 else np.ptp(inside, 0).max()
            )
            if pattern == "plain":
                assert spread == 0
            else:
                ground = np.array(scenes_render.PAPER["grey"])
                assert spread > 30
                assert np.linalg.norm(inside.mean(0) - ground) > np.linalg.norm(np.ptp(inside, 0)) / 2


def test_sizes_shapes_and_papers_all_differ() -> None:
    def picture(**more: str) -> bytes:
        values = {"shape": "circle", "colour": "red", "size": "medium", "pattern": "plain"} | more
        fade, paper = values.pop("fade", "even"), values.pop("paper", "white")
        thing = Thing(**values, place=4, jitter=(0.0, 0.0, 0.0))
        return scenes_render.render(Scene((thing,), paper, fade), SIZE)[0].tobytes()

    for name, choices in (
        ("shape", SHAPES),
        ("colour", COLOURS),
        ("size", SIZES),
        ("pattern", PATTERNS),
        ("paper", BACKGROUNDS),
        ("fade", FADES),
    ):
        assert len({picture(**{name: choice}) for choice in choices}) == len(choices)


def test_the_shipped_region_sources_find_the_things(build: Build) -> None:
    """The upper bound of what matching can reach."""
    proposer = regions.build(build().regions)
    found = []
    for scene in scenes(30):
        picture, boxes = scenes_render.render(scene, SIZE)
        proposed = [region.box for region in proposer.propose(picture)]
        found += [max(iou(box, one) for one in proposed) >= 0.5 for box in boxes]
    assert np.mean(found) > 0.95
