"""Sets to test with, in miniature: Urban1k, COCO 5k, Flickr30k 1k and ShareGPT4V-1k."""

import json
from typing import Any

import pytest

from goal.datasets import captions_file, karpathy, sharegpt4v, urban1k
from goal.errors import UserError
from goal.runtime.download import Remote
from tests.datasets.conftest import Build
from tests.datasets.miniature import has, ids, jpeg, packed, put, rejected, run, tar
from tests.datasets.server import Served, serve


def test_urban1k(build: Build, tmp_path, monkeypatch) -> None:
    has(monkeypatch, "urban1k", 3)
    members = {f"Urban1k/image/{n}.jpg": jpeg(n) for n in (2, 10, 221)}
    members |= {f"Urban1k/caption/{n}.txt": f"A street {n}.\nnot this".encode() for n in (2, 10)}
    members |= {"Urban1k/caption/221.txt": b"\xff\xfe"}
    with serve({"Urban1k.zip": Served(packed(members))}) as address:
        monkeypatch.setattr(urban1k, "ARCHIVE", Remote(f"{address}/Urban1k.zip"))
        splits = run(build, "urban1k")
    assert ids(splits) == {"test": ["10", "2"]}
    assert splits["test"][1].captions == ("A street 2.",)
    assert [row["reason"] for row in rejected("urban1k")] == ["unreadable row"]
    put(tmp_path, dict(list(members.items())[:-1]))
    with pytest.raises(UserError, match="2 captions, expected 3"):
        run(build, "urban1k", tmp_path)


def karpathy_file(filepath: str | None) -> bytes:
    """Five pictures, the last two for testing, with five or six captions."""
    images = []
    for number, split in enumerate(["train", "restval", "val", "test", "test"]):
        sentences = [{"raw": f"Short {number}.{n}", "tokens": []} for n in range(5 + number % 2)]
        image = {"imgid": number, "filename": f"{number}.jpg", "split": split, "sentences": sentences}
        images.append(image if filepath is None else image | {"filepath": filepath})
    return json.dumps({"images": images, "dataset": "x"}).encode()


def test_coco(build: Build, tmp_path, monkeypatch) -> None:
    has(monkeypatch, "coco", 2)
    served = {
        "caption_datasets.zip": Served(packed({"dataset_coco.json": karpathy_file("val2014")})),
        "val2014.zip": Served(packed({f"val2014/{n}.jpg": jpeg(n) for n in range(5)})),
    }
    with serve(served) as address:
        monkeypatch.setattr(karpathy, "CAPTIONS", Remote(f"{address}/caption_datasets.zip"))
        monkeypatch.setattr(karpathy, "COCO_IMAGES", Remote(f"{address}/val2014.zip"))
        splits = run(build, "coco")
    assert ids(splits) == {"test": ["3", "4"]}
    assert splits["test"][0].captions == tuple(f"Short 3.{n}" for n in range(5))


def test_coco_on_disk(build: Build, tmp_path, monkeypatch) -> None:
    has(monkeypatch, "coco", 2)
    put(tmp_path, {"dataset_coco.json": karpathy_file("val2014")})
    put(tmp_path / "val2014", {f"{n}.jpg": jpeg(n) for n in range(5)})
    assert ids(run(build, "coco", tmp_path)) == {"test": ["3", "4"]}
    has(monkeypatch, "coco", 5000)
    with pytest.raises(UserError, match="2 test pictures, expected 5,000"):
        run(build, "coco", tmp_path)
    put(tmp_path, {"dataset_coco.json": b'{"images": [{"split": "test"}]}'})
    with pytest.raises(UserError, match=r"dataset_coco\.json: not a file of the Karpathy splits"):
        run(build, "coco", tmp_path)


def test_a_published_gallery_stays_whole_though_a_caption_comes_twice(
    build: Build, tmp_path, monkeypatch, caplog
) -> None:
    """COCO has four such pictures, and captions without a letter or with tags are the gallery's, too."""
    has(monkeypatch, "coco", 2)
    images = json.loads(karpathy_file("val2014"))["images"]
    images[3]["sentences"][4] = images[3]["sentences"][1]
    images[4]["sentences"][0]["raw"] = "5"
    images[4]["sentences"][1]["raw"] = "A <b>bold</b> word."
    put(tmp_path, {"dataset_coco.json": json.dumps({"images": images}).encode()})
    put(tmp_path / "val2014", {f"{n}.jpg": jpeg(n) for n in range(5)})
    first, second = run(build, "coco", tmp_path, max_rejected=0.0)["test"]
    assert first.captions == ("Short 3.0", "Short 3.1", "Short 3.2", "Short 3.3", "Short 3.1")
    assert second.captions[:2] == ("5", "A <b>bold</b> word.")
    assert rejected("coco") == []
    assert "not comparable" not in caplog.text


def test_every_lost_row_of_a_published_set_warns(build: Build, tmp_path, monkeypatch, caplog) -> None:
    """A damaged picture, not only a missing one."""
    has(monkeypatch, "coco", 2)
    put(tmp_path, {"dataset_coco.json": karpathy_file("val2014")})
    put(tmp_path / "val2014", {f"{n}.jpg": jpeg(n) for n in range(4)} | {"4.jpg": jpeg(4)[:200]})
    assert ids(run(build, "coco", tmp_path)) == {"test": ["3"]}
    assert "rows are lost in" in caplog.text
    assert "(1 x damaged picture): numbers on this set are not comparable" in caplog.text
    with pytest.raises(UserError, match=r"1 of 2 rows cannot be used \(1 x damaged picture\)"):
        run(build, "coco", tmp_path, max_rejected=0.05)


def test_flickr30k(build: Build, tmp_path, monkeypatch) -> None:
    has(monkeypatch, "flickr30k", 2)
    with pytest.raises(UserError, match=r"no pictures of flickr30k: fill in the form .*images\.tar\.gz"):
        run(build, "flickr30k", tmp_path)
    pictures = tar({f"flickr30k-images/{n}.jpg": jpeg(n) for n in range(5)})
    put(tmp_path, {"dataset_flickr30k.json": karpathy_file(None), "flickr30k-images.tar.gz": pictures})
    assert ids(run(build, "flickr30k", tmp_path)) == {"test": ["3", "4"]}


def sharegpt4v_row(number: int) -> dict[str, Any]:
    answer = {"from": "gpt", "value": f"Line one {number}.\nLine two."}
    talk = [{"from": "human", "value": "<image>\nWhat?"}, answer]
    return {"id": str(number), "image": f"sam/images/sa_{number}.jpg", "conversations": talk}


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_sharegpt4v_reads_the_first_rows_only(build: Build, tmp_path, monkeypatch, block: int) -> None:
    has(monkeypatch, "sharegpt4v", 3)
    monkeypatch.setattr(captions_file, "BLOCK", block)
    with pytest.raises(UserError, match=r"no pictures of sharegpt4v: accept the SA-1B licence"):
        run(build, "sharegpt4v", tmp_path)
    rows = [sharegpt4v_row(number) for number in range(4)]
    rows[1] = {"image": "sam/images/sa_1.jpg"}
    # What follows the rows that are needed is not even JSON.
    text = json.dumps(rows, indent=1)[:-40] + "cut off"
    put(tmp_path, {sharegpt4v.CAPTIONS.file: text.encode()})
    put(tmp_path / "sam/images", {f"sa_{n}.jpg": jpeg(n) for n in range(4)})
    splits = run(build, "sharegpt4v", tmp_path)
    assert ids(splits) == {"test": ["sa_0", "sa_2"]}
    assert splits["test"][0].captions == ("Line one 0. Line two.",)
    assert [row["row"] for row in rejected("sharegpt4v")] == [f"{sharegpt4v.CAPTIONS.file}[1]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "0 rows, expected 3"),
        ("[{}]", "1 rows, expected 3"),
        ("[{", "cut off"),
        ("<x>", "not JSON: Expecting value"),
        (b'[{"image": "\xff\xfe"}]', r"1107\.json: not UTF-8 \(invalid start byte\)"),
        ("[" + "[" * 100_000, "nested too deeply"),
        ('[{"image": 5, "conversations": [{}, {"value": "x"}]}, 1, "a"]', "no usable picture"),
    ],
)
def test_sharegpt4v_of_another_kind_is_one_line(
    build: Build, tmp_path, monkeypatch, content: str | bytes, message: str
) -> None:
    has(monkeypatch, "sharegpt4v", 3)
    content = content if isinstance(content, bytes) else content.encode()
    put(tmp_path, {sharegpt4v.CAPTIONS.file: content, "sam/images/sa_0.jpg": jpeg(0)})
    with pytest.raises(UserError, match=message) as caught:
        run(build, "sharegpt4v", tmp_path)
    assert "\n" not in str(caught.value)
