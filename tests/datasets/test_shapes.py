"""Data sets in the shapes that people have: through the data stage, their pictures read as later stages do.

tests/fixtures/shapes holds files that Hugging Face's `datasets` 4.8 and openpyxl 3.1 wrote.
"""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from goal.datasets import inside, manifest, slices
from goal.mining import reading
from goal.stages import regions
from tests.datasets.conftest import Build
from tests.datasets.own import read, rejected, rows, run
from tests.imports import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "shapes"
ANSWER = [
    {"from": "human", "value": "<image>\nTell."},
    {"from": "gpt", "value": ""},
    {"from": "gpt", "value": "x"},
]


def bytes_of(folder: Path, number: int) -> bytes:
    return (folder / f"images/{number}.png").read_bytes()


def move(own: Path, target: str) -> None:
    """The pictures to another folder below `own`."""
    (own / target).parent.mkdir(parents=True, exist_ok=True)
    (own / "images").rename(own / target)


def imagefolder(own: Path, suffix: str) -> None:
    """As the Hugging Face Hub has it: a metadata file in the folder of each split."""
    for split, part in (("train", range(6)), ("test", range(6, 10))):
        (own / split).mkdir()
        entries = [{"file_name": f"{number}.png", "text": f"Caption {number}."} for number in part]
        for number in part:
            shutil.copy(own / f"images/{number}.png", own / split)
        table, file = pandas.DataFrame(entries), own / split / f"metadata{suffix}"
        if suffix == ".csv":
            table.to_csv(file, index=False)
        elif suffix == ".parquet":
            table.to_parquet(file)
        else:
            table.to_json(file, orient="records", lines=True)
    shutil.rmtree(own / "images")


def webdataset(own: Path) -> None:
    """img2dataset's layout: shards, each with a table and statistics of what is in it."""
    for shard in range(2):
        with tarfile.open(own / f"{shard:05}.tar", "w") as tar:
            for number in range(5 * shard, 5 * shard + 5):
                about = {
                    "caption": f"Caption {number}.",
                    "url": "http://x",
                    "key": f"{number:09}",
                    "width": 6,
                }
                members = {"png": bytes_of(own, number), "txt": about["caption"].encode()}
                for ending, content in (members | {"json": json.dumps(about).encode()}).items():
                    member = tarfile.TarInfo(f"{number:09}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        pandas.DataFrame({"url": ["http://x"] * 5, "caption": ["c"] * 5}).to_parquet(
            own / f"{shard:05}.parquet"
        )
        (own / f"{shard:05}_stats.json").write_text(json.dumps({"count": 5, "successes": 5}))
    shutil.rmtree(own / "images")


def img2dataset_files(own: Path) -> None:
    """Its other layout: a folder of files instead of a tar."""
    webdataset(own)
    for tar in own.glob("*.tar"):
        with tarfile.open(tar) as content:
            content.extractall(tar.with_suffix(""), filter="data")
        tar.unlink()


def parquet(own: Path) -> None:
    shutil.copytree(FIXTURES / "parquet", own, dirs_exist_ok=True)
    shutil.rmtree(own / "images")


def arrow(own: Path) -> None:
    shutil.copytree(FIXTURES / "arrow", own, dirs_exist_ok=True)
    shutil.rmtree(own / "images")


def img2dataset_parquet(own: Path) -> None:
    """img2dataset's Parquet: bytes alone, in a column jpg."""
    table = {"jpg": [bytes_of(own, number) for number in range(10)], "key": [f"{n:09}" for n in range(10)]}
    pandas.DataFrame(table | {"caption": [row["caption"] for row in rows()]}).to_parquet(
        own / "00000.parquet"
    )
    (own / "00000_stats.json").write_text("{}")
    shutil.rmtree(own / "images")


def llava(own: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "<image>\nCaption {}."}]
    turns += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "No caption."}]
    entries = [
        {
            "id": str(number),
            "image": f"{number}.png",
            "conversations": [one | {"value": one["value"].format(number)} for one in turns],
        }
        for number in range(10)
    ]
    (own / "share-captioner.json").write_text(json.dumps(entries))


def coco(own: Path) -> None:
    """As cocodataset.org and pycocotools have it, five captions each."""
    (own / "annotations").mkdir()
    move(own, "val2017")
    images = [{"id": number, "file_name": f"{number}.png", "width": 6} for number in range(10)]
    notes = [
        {"id": 10 * image + number, "image_id": image, "caption": f"Caption {image}{' again' * number}."}
        for number in range(5)
        for image in range(10)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": notes}
    (own / "annotations/captions_val2017.json").write_text(json.dumps(content))
    (own / "annotations/instances_val2017.json").write_text(json.dumps(content | {"annotations": []}))


def sidecar(own: Path) -> None:
    (own / "README.txt").write_text("About the pictures.")
    for number in range(10):
        (own / f"images/{number}.txt").write_text(f"Caption {number}.\n")


def table(name: str, separator: str = ",", encoding: str = "utf-8", head: str = "image,caption") -> Callable:
    def make(own: Path) -> None:
        lines = [head.replace(",", separator)]
        lines += [f"images/{number}.png{separator}Caption {number}." for number in range(10)]
        content = "\n".join(lines).encode(encoding)
        (own / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    return make


def excel(own: Path) -> None:
    pytest.importorskip("openpyxl")
    shutil.copy(FIXTURES / "captions.xlsx", own)


def densefusion(own: Path) -> None:
    lines = [{"image_id": f"{n}", "image_path": f"{n}.png", "caption": f"Caption {n}."} for n in range(10)]
    (own / "DenseFusion-1M.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pixelprose(own: Path) -> None:
    """After img2dataset: alt text as txt, the long caption in the JSON."""
    webdataset(own)
    for shard in own.glob("*.tar"):
        with tarfile.open(shard) as old, tarfile.open(own / "new", "w") as new:
            for member in old:
                content = old.extractfile(member).read()
                if member.name.endswith(".json"):
                    about = json.loads(content)
                    content = json.dumps(about | {"vlm_caption": about["caption"], "caption": "alt"}).encode()
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
        (own / "new").rename(shard)


def dreamlip(own: Path) -> None:
    head = "Image Path,raw_caption,longIB_captions"
    lines = [f"images/{n}.png,alt,Caption {n}." for n in range(10)]
    (own / "cc3m_3long_3short_1raw_captions_url.csv").write_text("\n".join([head, *lines]))


SHAPES: dict[str, tuple[Callable[[Path], None], str]] = {
    "imagefolder-jsonl": (lambda own: imagefolder(own, ".jsonl"), "imagefolder with 2 files"),
    "imagefolder-csv": (lambda own: imagefolder(own, ".csv"), "pictures: 'file_name'; captions: 'text'"),
    "imagefolder-parquet": (lambda own: imagefolder(own, ".parquet"), "2 files, the first metadata.parquet"),
    "webdataset": (webdataset, "WebDataset, 2 files, the first 00000.tar"),
    "img2dataset-files": (img2dataset_files, "pictures with text of the same name, 10 of 10"),
    "img2dataset-parquet": (img2dataset_parquet, "Parquet, 00000.parquet"),
    "parquet": (parquet, "pictures: 'image'; captions: 'description'"),
    "arrow": (arrow, "Arrow, 2 files"),
    "llava": (llava, "captions: 'conversations'"),
    "coco": (coco, "COCO captions, captions_val2017.json"),
    "sidecar": (sidecar, "pictures with text of the same name, 10 of 10"),
    "semicolon": (
        table("list.csv", ";", head="Filename;  Text "),
        "pictures: 'Filename'; captions: '  Text '",
    ),
    "tab-latin1": (table("captions.tsv", "\t", "latin-1"), "TSV"),
    "pipe-utf16": (table("captions.csv", "|", "utf-16"), "read with '|' between the cells, as in its header"),
    "csv-gz": (table("captions.csv.gz"), "captions.csv.gz: read as a file of CSV"),
    "excel": (excel, "a file of XLSX; pictures: 'File Name'"),
    "densefusion": (densefusion, "pictures: 'image_path'; captions: 'caption'"),
    "pixelprose": (pixelprose, "captions: 'vlm_caption'"),
    "dreamlip": (dreamlip, "pictures: 'Image Path'; captions: 'longIB_captions'"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_says_the_same(build: Build, own: Path, shape: str, caplog: Any) -> None:
    make, words = SHAPES[shape]
    make(own)
    with caplog.at_level("INFO"):
        run(build, own)
    assert words in caplog.text
    assert not rejected()
    found = {row.captions[0]: row for row in read().values()}
    assert set(found) == {row["caption"] for row in rows()}
    for number in range(10):
        row = found[f"Caption {number}."]
        # As regions, pairs and training open it.
        picture = reading.picture(row, Path.cwd(), 200)
        assert isinstance(picture, Image.Image)
        assert picture.size == (row.width, row.height) == (6 + number, 8)
        assert np.asarray(picture).max() == 20 * number
    counts = json.loads(Path("data/own/summary.json").read_text())["splits"]
    if shape.startswith(("imagefolder", "parquet", "arrow")):
        assert (counts["train"]["images"], counts["test"]["images"]) == (6, 4)
    if shape == "coco":
        assert counts["train"]["captions"] == 5 * counts["train"]["images"]


def test_a_tar_of_the_webdataset_library(build: Build, own: Path) -> None:
    library = pytest.importorskip("webdataset")
    with library.TarWriter(str(own / "set-000000.tar")) as tar:
        for number, row in enumerate(rows()):
            about = {"text": row["caption"], "n": number}
            tar.write({"__key__": f"a/{number:04}", "png": bytes_of(own, number), "json": about})
    run(build, own)
    assert not rejected()
    assert read()["set-000000.tar#a/0003"].captions == ("Caption 3.",)


@pytest.mark.parametrize("make", [parquet, arrow, webdataset])
def test_pictures_inside_files_go_on_to_the_regions(build: Build, own: Path, make: Callable) -> None:
    make(own)
    run(build, own)
    params = build(name="own", source="folder", path=str(own))
    section = params.regions.model_copy(update={"sources": ["fixed"], "min_area": 0.0})
    regions.run(params.model_copy(update={"regions": section}))
    summary = json.loads(Path("regions/train/summary.json").read_text())
    assert summary["regions"] == 5 * summary["pictures"] > 0
    assert summary["unreadable"] == {}
    assert not any(path.suffix == ".png" for path in own.rglob("*"))


@pytest.mark.parametrize("make", [parquet, arrow, webdataset])
def test_a_changed_file_is_noticed_by_what_depends_on_its_pictures(
    build: Build, own: Path, make: Callable
) -> None:
    make(own)
    run(build, own)
    train = Path("data/own/train.parquet")
    before = slices.content(train)
    assert slices.content(train) == before
    for row in manifest.read(train):
        file = Path(inside.file_of(row.image))
        file.write_bytes(file.read_bytes())
    assert slices.content(train) != before
