"""The GOAL release's lists as they are, beside one's own pictures."""

import json
from pathlib import Path

import pytest

from goal.config import paths
from goal.datasets import goal_lists, manifest
from goal.errors import UserError
from tests.datasets.conftest import Build
from tests.datasets.miniature import ids, jpeg, put, rejected, run
from tests.imports import ROOT

LISTS = ROOT.parent / "shared" / "captions"


def crop(picture: str, file: str, caption: str) -> dict[str, str | float]:
    return {"filename": f"../x/{picture}.jpg_results/{file}", "caption": caption, "similarity_score": 25.2}


def test_pictures_are_found_by_name_and_bring_their_crops(build: Build, tmp_path, caplog) -> None:
    lists, root = tmp_path / "lists", tmp_path / "pictures"
    whole = [{"filename": f"../DCI/photos/sa_{n}.jpg", "caption": f"A whole {n}."} for n in range(4)]
    crops = [
        crop("sa_0", "sa_0_max_10.png", "part 0"),
        crop("sa_1", "sa_1_max_11.png", "lost"),
        crop("sa_3", "original_image.jpg", "all"),
        crop("sa_7", "sa_7_max_17.png", "of nothing"),
    ]
    put(lists, {"DCI_test_joint_sim_max_11.json": json.dumps([*whole[:2], whole[3], *crops]).encode()})
    train = [whole[2], crop("sa_2", "sa_2_max_12.png", "to train with")]
    put(lists, {"DCI_train.json": json.dumps(train).encode()})
    # GOAL's training list, which no word of its name makes one.
    put(lists, {"DCI_segment_only_sim_max_del_org.json": json.dumps(train[1:]).encode()})
    put(root / "photos", {f"sa_{n}.jpg": jpeg(n) for n in range(4)})
    put(root / "crops" / "deep", {f"sa_{n}_max_1{n}.png": jpeg(20 + n) for n in (0, 7)})
    splits = run(build, "goal_lists", root, path=str(lists))
    assert ids(splits) == {"train": ["sa_2"], "test": ["sa_0", "sa_1", "sa_3"]}
    path = paths.data_dir("my-goal_lists") / "joint.parquet"
    joint = manifest.read_table(path, manifest.JOINT).to_pylist()
    assert [(row["id"], row["of"], row["caption"], row["x2"], row["y2"]) for row in joint] == [
        ("sa_0-crop", "sa_0", "part 0", 28, 6),
        ("sa_3-crop", "sa_3", "all", 11, 6),
    ]
    assert Path(joint[0]["image"]).read_bytes() == jpeg(20)
    assert joint[1]["image"] == splits["test"][2].image
    assert sorted((row["id"], row["reason"]) for row in rejected("goal_lists")) == [
        ("sa_1-crop", "not found"),
        ("sa_2_max_12.png", "crop to train with"),
        ("sa_7_max_17.png", "crop of no test picture"),
    ]
    (left_out,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert left_out.startswith(f"{lists}/DCI_segment_only_sim_max_del_org.json: left out: ")
    assert "`dvc repro pairs` mines them" in left_out


@pytest.mark.parametrize("content", [b"{}", b'[{"filename": 3}]', b"[", b'["x"]'])
def test_other_lists_are_refused_in_one_line(build: Build, tmp_path, content: bytes) -> None:
    put(tmp_path, {"x_test.json": content})
    with pytest.raises(UserError, match=r"x_test\.json: ") as caught:
        run(build, "goal_lists", tmp_path, path=str(tmp_path / "x_test.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not LISTS.exists(), reason="the release's lists are not beside the project")
def test_the_release_s_own_lists_are_read() -> None:
    entries = goal_lists.read(LISTS / "DCI_test_joint_sim_max_11.json")
    names = {Path(entry.name).stem for entry in entries if not entry.crop_of}
    crops = [entry for entry in entries if entry.crop_of]
    assert (len(names), len(crops)) == (1999, 1999)
    assert {entry.crop_of for entry in crops} == names
    assert len(goal_lists.read(LISTS / "docci_test.json")) == 5100
