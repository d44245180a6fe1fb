"""Boxes that come with the pictures: read in every form, proposed as regions, paired by their phrase."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goal import weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.errors import UserError
from goal.mining.mined import PAIRS, REGIONS, SIDES
from goal.stages import data, pairs, regions
from tests import trainings

COUNT = 12
# x, y, width, height
BALL, TREE = (4.0, 4.0, 20.0, 16.0), (30.0, 10.0, 26.0, 36.0)


def corners(box: tuple[float, ...]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


FORMS: dict[str, Any] = {
    "bbox": {"regions": [{"bbox": BALL, "phrase": "ball"}, {"bbox": TREE, "label": "tree"}]},
    "corners": {
        "regions": [{"bbox_xyxy": corners(BALL), "text": "ball"}, {"box": corners(TREE), "phrase": "tree"}]
    },
    "objects": {"objects": {"bbox": [BALL, TREE], "categories": ["ball", "tree"]}},
    "a cell": {
        "regions": json.dumps([{"bbox_xywh": BALL, "caption": "ball"}, {"bbox": TREE, "phrase": "tree"}])
    },
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(draw.integers(0, 256, (48, 60, 3), np.uint8)).save(tmp_path / f"own/{number}.png")
    return tmp_path / "own"


def write(own: Path, more: dict[str, Any]) -> None:
    lines = [
        {"image": f"{n}.png", "caption": f"A ball lies here. Number {n} has a Tree. Nothing else."} | more
        for n in range(COUNT)
    ]
    (own / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def project(own: Path, *sources: str) -> Params:
    params = trainings.params(
        data__source="folder",
        data__path=str(own),
        regions__sources=list(sources),
        regions__workers=1,
        pairs__workers=1,
    )
    data.run(params)
    return params


def table(folder: str, schema: Any) -> list[dict]:
    return [
        row
        for shard in sorted(Path(folder).glob("*.parquet"))
        for row in manifest.read_table(shard, schema).to_pylist()
    ]


@pytest.mark.parametrize("form", FORMS)
def test_they_are_regions_and_pairs(own: Path, form: str) -> None:
    write(own, FORMS[form])
    params = project(own, "given")
    weights.save(trainings.model(), paths.model_dir("zero-shot"))
    regions.run(params)
    pairs.run(params)
    found = table("regions/train", REGIONS)
    pictures = len(manifest.read(paths.manifest("tiny", "train")))
    assert len(found) == 2 * pictures
    assert {tuple(row[side] for side in SIDES) for row in found} == {
        tuple(corners(BALL)),
        tuple(corners(TREE)),
    }
    assert {row["source"] for row in found} == {"given"}
    assert {round(row["area_ratio"], 4) for row in found} == {round(320 / 2880, 4), round(936 / 2880, 4)}
    mined = table("pairs/train", PAIRS)
    assert len(mined) == 3 * pictures
    for row in mined:
        box = [row[side] for side in SIDES]
        # By its phrase, whatever the similarity to others; case does not matter.
        if row["sentence"] < 2:
            assert box == corners((BALL, TREE)[row["sentence"]])
            assert (row["source"], row["dropped"]) == ("given", "")
        assert -1 <= row["similarity"] <= 1


def test_other_sources_come_after_them(own: Path) -> None:
    write(own, FORMS["bbox"])
    params = project(own, "given", "fixed")
    regions.run(params)
    found = [row["source"] for row in table("regions/test", REGIONS)]
    assert found == (["given"] * 2 + ["fixed"] * 5) * (len(found) // 7)


def test_boxes_that_leave_the_picture_are_cut_and_odd_ones_listed(own: Path) -> None:
    odd: list[Any] = [
        [{"bbox": [-10, -10, 30, 30]}],
        [{"bbox": [100, 100, 5, 5]}],
        [{"bbox": [1, 2, 3]}],
        [{"bbox": [1, 2, "x", 4]}],
        [{"bbox": [1, 2, float("inf"), 4]}],
        "Europe",
        3,
        [],
    ]
    lines = [{"image": f"{n}.png", "caption": f"Picture {n}.", "regions": one} for n, one in enumerate(odd)]
    lines += [{"image": f"{n}.png", "caption": f"Picture {n}."} for n in range(len(odd), COUNT)]
    (own / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    project(own, "given")
    boxes = manifest.read_table(Path("data/tiny/boxes.parquet"), manifest.BOXES).to_pylist()
    assert boxes == [{"id": "0.png", "x1": 0.0, "y1": 0.0, "x2": 20.0, "y2": 20.0, "phrase": ""}]
    # They cost no picture.
    summary = json.loads(Path("data/tiny/summary.json").read_text())
    assert summary["rejected"] == {"boxes of no known form": 5}
    assert sum(split["images"] for split in summary["splits"].values()) == COUNT


def test_a_set_without_boxes_is_refused_in_one_line(own: Path) -> None:
    write(own, {})
    params = project(own, "given")
    with pytest.raises(UserError, match=r"boxes.parquet: not found: regions.sources names given, and no row"):
        regions.run(params)


def test_coco_has_them_beside_its_captions(own: Path) -> None:
    """In the same file, where a caption with a box is the box's, and in instances_<split>.json."""
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(COUNT)]
    notes = [{"image_id": n, "caption": f"A ball and a tree, {n}."} for n in range(COUNT)]
    ball = [{"image_id": n, "bbox": BALL, "caption": "ball"} for n in range(COUNT)]
    tree = [{"image_id": n, "bbox": TREE, "category_id": 7} for n in range(COUNT)]
    kinds = [{"id": 7, "name": "tree"}]
    content = {"images": images, "annotations": notes + ball}
    (own / "list.json").write_text(json.dumps(content))
    project(own, "given")
    boxes = manifest.read_table(Path("data/tiny/boxes.parquet"), manifest.BOXES).to_pylist()
    assert [row["phrase"] for row in boxes] == ["ball"] * COUNT
    assert all(len(row.captions) == 1 for row in manifest.read(Path("data/tiny/train.parquet")))
    (own / "list.json").unlink()
    (own / "annotations").mkdir()
    for name, part in (
        ("captions", {"annotations": notes}),
        ("instances", {"annotations": tree, "categories": kinds}),
    ):
        (own / f"annotations/{name}_own.json").write_text(json.dumps({"images": images} | part))
    project(own, "given")
    boxes = manifest.read_table(Path("data/tiny/boxes.parquet"), manifest.BOXES).to_pylist()
    assert [row["phrase"] for row in boxes] == ["tree"] * COUNT
