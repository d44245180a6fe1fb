"""Broken data sets of every shape: one clear line, or rows that are counted with their reason."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goal.datasets import inside
from goal.datasets.images import ImageError, open_image
from goal.errors import UserError
from tests.datasets.conftest import Build
from tests.datasets.own import read, rejected, rows, run, write
from tests.datasets.test_shapes import arrow, bytes_of, coco, imagefolder, llava, parquet, sidecar, webdataset


def refused(build: Build, path: Path, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        run(build, path, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def columns_of_pictures(own: Path, *names: str) -> None:
    """A Parquet file with pictures in these columns, as pandas writes structs, and a caption."""
    entries = [
        {name: {"bytes": bytes_of(own, number), "path": None} for name in names}
        | {"caption": f"Caption {number}."}
        for number in range(10)
    ]
    pandas.DataFrame(entries).to_parquet(own / "data.parquet")


def test_parquet_without_a_picture_column(build: Build, own: Path) -> None:
    pandas.DataFrame(rows()).drop(columns="image").to_parquet(own / "data.parquet")
    assert "no row has a field image or filename" in refused(build, own)


def test_two_columns_of_pictures(build: Build, own: Path) -> None:
    columns_of_pictures(own, "photo", "drawing")
    words = "pictures in the columns drawing, photo; set data.folder.image_column to one"
    assert words in refused(build, own)
    run(build, own, folder={"image_column": "photo"})
    assert len(read()) == 10


def test_a_picture_with_neither_bytes_nor_path_and_one_with_a_path(build: Build, own: Path) -> None:
    kinds = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "images/9.png"}]
    kinds += [{"bytes": b"", "path": None}, {"bytes": b"no picture", "path": None}]
    kinds += [{"bytes": bytes_of(own, number), "path": "x"} for number in range(7)]
    captions = [f"Caption {number}." for number in range(len(kinds))]
    table = pa.table({"image": pa.array(kinds, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    table = table.append_column("caption", pa.array(captions))
    for suffix in (".parquet", ".arrow"):
        file = own / f"data{suffix}"
        if suffix == ".parquet":
            pq.write_table(table, file)
        else:
            with pa.ipc.new_file(file, table.schema) as out:
                out.write_table(table)
        run(build, file, folder={"test_share": 0.5})
        assert sorted(row["reason"] for row in rejected()) == [
            "empty file (0 bytes)",
            "no picture named",
            "no picture named",
            "not a picture",
        ]
        found = {row.captions[0]: row for row in read().values()}
        assert (found["Caption 2."].width, found["Caption 11."].width) == (15, 12)


@pytest.mark.parametrize("make", [parquet, arrow])
def test_a_file_cut_short(build: Build, own: Path, make: Any) -> None:
    make(own)
    file = next(path for path in sorted(own.rglob("train*")) if path.suffix or path.is_dir())
    file = next(file.glob("*.arrow")) if file.is_dir() else file
    file.write_bytes(file.read_bytes()[:-500])
    words = refused(build, own)
    assert f"{file}: cannot be read" in words
    file.write_bytes(b"")
    assert "it is empty" in refused(build, own)


def test_arrow_with_compressed_buffers(build: Build, own: Path) -> None:
    table = pa.table({"image": [bytes_of(own, 0) * 50], "caption": ["A caption."]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(own / "data.arrow", table.schema, options=options) as out:
        out.write_table(table)
    assert "its buffers are compressed" in refused(build, own / "data.arrow")


def test_a_row_group_too_large_to_be_decoded_for_one_picture(
    build: Build, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns_of_pictures(own, "image")
    monkeypatch.setattr(inside, "MAX_GROUP", 100)
    words = refused(build, own)
    assert "write it with smaller ones: python -c" in words
    code = words.partition('python -c "')[2].rpartition('"')[0]
    subprocess.run([sys.executable, "-c", code], cwd=own, check=True)
    assert pq.read_table(own / "smaller.parquet") == pq.read_table(own / "data.parquet")


def test_a_bad_shard_costs_its_rows(build: Build, own: Path) -> None:
    webdataset(own)
    shard = own / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:4000])
    run(build, own)
    lost = rejected()
    assert len(lost) + len(read()) == 10
    assert {row["reason"] for row in lost} == {"unreadable row"}
    assert all("damaged tar after" in row["detail"] for row in lost)
    # Not a tar at all, and one that is compressed.
    shard.write_bytes(b"no tar")
    run(build, own)
    assert (len(read()), len(rejected())) == (5, 5)
    assert "5 of 10 rows cannot be used" in refused(build, own, max_rejected=0.2)


def test_members_of_a_tar_that_leave_the_folder_and_other_faults(build: Build, own: Path) -> None:
    with tarfile.open(own / "0.tar", "w") as tar:
        for number in range(10):
            add(tar, f"a/{number}.png", bytes_of(own, number))
            add(tar, f"a/{number}.txt", f"Caption {number}.".encode())
        add(tar, "../../out.png", bytes_of(own, 0))
        add(tar, "../../out.txt", b"Out.")
        add(tar, "b/text.png", bytes_of(own, 0))
        add(tar, "b/text.txt", b"\xff\xfe")
        add(tar, "b/json.png", bytes_of(own, 0))
        add(tar, "b/json.json", b"{")
        add(tar, "b/alone.txt", b"No picture.")
        add(tar, "b/silent.png", bytes_of(own, 0))
        link = tarfile.TarInfo("b/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    run(build, own / "0.tar")
    assert len(read()) == 10
    assert sorted((row["reason"], row["detail"][:12]) for row in rejected()) == [
        ("no caption", "no field cap"),
        ("no picture named", "no field ima"),
        ("unreadable row", "a member's p"),
        ("unreadable row", "not JSON: Ex"),
        ("unreadable row", "not UTF-8: i"),
    ]


def test_a_dialogue_without_an_answer_or_a_picture(build: Build, own: Path) -> None:
    llava(own)
    file = own / "share-captioner.json"
    question = {"from": "human", "value": "What?"}
    more = [
        {"id": "a", "conversations": [question, {"from": "gpt", "value": "Text alone."}]},
        {"id": "b", "image": "0.png", "conversations": [question]},
        {"id": "c", "image": "0.png", "conversations": "no list"},
        {"id": "d", "image": "0.png", "messages": [{"role": "assistant", "content": "Another form."}]},
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) + more))
    run(build, own)
    assert [row["reason"] for row in rejected()] == ["no picture named", "no caption", "no caption"]
    assert [row.captions for row in read().values() if row.width == 6] == [("Caption 0.", "Another form.")]


def test_a_picture_of_coco_without_captions_and_a_broken_file(build: Build, own: Path) -> None:
    coco(own)
    file = own / "annotations/captions_val2017.json"
    content = json.loads(file.read_text())
    content["images"] += [{"id": 99, "file_name": "9.png"}, {"file_name": "no id"}, 3]
    file.write_text(json.dumps(content))
    run(build, own)
    assert [row["reason"] for row in rejected()] == ["no caption", "unreadable row", "unreadable row"]
    file.write_text(json.dumps(content)[:-9])
    assert "captions_val2017.json:1: not JSON" in refused(build, own)
    file.write_text("{}")
    assert "expected a list of objects, found an object" in refused(build, own)


def test_imagefolder_with_a_picture_that_is_not_there(build: Build, own: Path) -> None:
    imagefolder(own, ".jsonl")
    (own / "train/0.png").unlink()
    run(build, own)
    assert [(row["reason"], row["image"]) for row in rejected()] == [("not found", "train/0.png")]


def test_pictures_without_text_beside_them(build: Build, own: Path) -> None:
    sidecar(own)
    (own / "images/3.txt").unlink()
    (own / "images/4.txt").write_bytes(b"\xff")
    run(build, own)
    assert sorted(row["reason"] for row in rejected()) == ["no caption", "unreadable row"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "captions.csv",
            b"image\na.png\n",
            "one column, 'image': none of ',' ';' '\\t' '|' is in its header",
        ),
        ("captions.csv.gz", b"no gzip", "not gzip, or cut off"),
        ("captions.xlsx", b"no excel", "captions.xlsx: "),
        ("captions.tsv", b"image\tCaption\tcaption \na\tb\tc\n", "comes twice; rename one"),
        ("00000.tar", b"", "none of 1 rows can be used; the first, 00000.tar:0: unreadable row: damaged tar"),
    ],
)
def test_a_table_of_no_use(build: Build, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_bytes(content)
    assert words in refused(build, tmp_path / "own")


def test_an_excel_file_with_two_sheets(build: Build, own: Path) -> None:
    pytest.importorskip("openpyxl")
    with pandas.ExcelWriter(own / "captions.xlsx") as book:
        for sheet in ("first", "second"):
            pandas.DataFrame(rows()).to_excel(book, sheet_name=sheet, index=False)
    assert "expected one sheet with rows, found first, second" in refused(build, own)


def test_a_thousand_columns(build: Build, own: Path) -> None:
    many = {f"column {number}": ["x"] for number in range(1000)}
    for suffix in (".csv", ".parquet"):
        table = pandas.DataFrame({"picture": ["a.png"], "caption": ["A caption."], **many})
        file = own / f"data{suffix}"
        (table.to_csv if suffix == ".csv" else table.to_parquet)(file, index=False)
        words = refused(build, file)
        assert "no row has a field image" in words
        assert "and 990 more; data.folder.image_column names another" in words


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("column", ["url", "Image Path"])
def test_addresses_alone_are_to_be_downloaded(build: Build, own: Path, suffix: str, column: str) -> None:
    """PixelProse and Recap-DataComp name their column url; DreamLIP's Image Path holds addresses."""
    table = pandas.DataFrame({column: ["https://a.b/c.jpg"] * 30, "re_caption": ["Long."] * 30})
    table["org_caption"] = "alt"
    file = own / f"recap{suffix}"
    if suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        (table.to_csv if suffix == ".csv" else table.to_parquet)(file, index=False)
    words = refused(build, file)
    assert f"its pictures are only addresses (column '{column}')" in words
    line = f"img2dataset --url_list {file} --input_format {suffix[1:]} --url_col '{column}' --caption_col "
    assert line + "'re_caption' --output_format webdataset" in words


def test_an_address_among_files_and_as_the_path(build: Build, own: Path) -> None:
    write(own, [*rows(), {"image": "https://a.b/c.jpg", "caption": "x"}])
    run(build, own)
    assert [row["reason"] for row in rejected()] == ["picture on the web"]
    assert "an address is not read here" in refused(build, Path("https://a.b/c.csv"))
    assert "hf download google/docci --repo-type dataset" in refused(build, Path("google/docci"))


def test_several_files_that_could_be_the_captions(build: Build, own: Path) -> None:
    (own / "one.csv").write_text("image,caption\n")
    (own / "two.csv").write_text("image,caption\n")
    assert "several files could be the captions: one.csv, two.csv; set data.path to one" in refused(
        build, own
    )


def test_references_to_what_is_not_there(own: Path) -> None:
    columns_of_pictures(own, "image")
    names = {"none.tar#a@0+9": "not found", "data.parquet#10@image.bytes": "damaged picture"}
    names |= {"data.parquet#0@none": "damaged picture", "images/0.png#1@2+3": "not found"}
    for name, reason in names.items():
        with pytest.raises(ImageError) as error:
            open_image(own / name, 200)
        assert error.value.reason == reason
