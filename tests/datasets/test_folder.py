"""Bring your own: pictures and captions of every form and fault, through the data stage."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from goal.datasets import manifest
from goal.errors import UserError
from tests.datasets.conftest import Build
from tests.datasets.own import read, rejected, rows, run, write
from tests.imports import ROOT

PHOTOS = ROOT.parent / "shared" / "photos"
LONG = " ".join(f"Sentence number {number} tells of things." for number in range(400))
ODD_CAPTIONS = [
    "one",
    LONG,
    "🌻🦊 nothing but emoji 👩‍👩‍👧",
    "שלום עולם. תמונה של בית.",
    "line\nbreak.",
    "  kept  ",
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("image", ["image", "filename", "file_name", "path"])
def test_every_form_says_the_same(build: Build, own: Path, suffix: str, encoding: str, image: str) -> None:
    entries = [{image: row["image"], "caption": row["caption"] + ' “é”, "x"'} for row in rows()]
    write(own, entries, suffix, encoding)
    run(build, own)
    found = read()
    assert not rejected()
    assert len(found) == 10
    for number in range(10):
        row = found[f"images/{number}.png"]
        assert row.captions == (f'Caption {number}. "é", "x"',)
        assert (row.width, row.height) == (6 + number, 8)
        assert Path(row.image) == own / "images" / f"{number}.png"


def test_path_may_be_the_captions_file(build: Build, own: Path) -> None:
    write(own, rows(), ".csv").rename(own / "some name.csv")
    run(build, own / "some name.csv")
    assert len(read()) == 10


def test_rows_of_one_picture_are_joined(build: Build, own: Path) -> None:
    more = [
        {"image": "./images/0.png", "captions": ["Second.", "Third."]},
        {"image": "images/../images/0.png", "text": "Fourth."},
        {"image": "../own/images/0.png", "caption": "Fifth."},
        {"image": str(own / "images/0.png"), "caption": "Sixth."},
    ]
    write(own, rows() + more)
    run(build, own)
    expected = ("Caption 0.", "Second.", "Third.", "Fourth.", "Fifth.", "Sixth.")
    assert read()["images/0.png"].captions == expected
    assert not rejected()


def test_odd_captions_are_used(build: Build, own: Path) -> None:
    write(own, rows()[:9] + [{"image": "images/9.png", "captions": ODD_CAPTIONS}])
    run(build, own)
    assert read()["images/9.png"].captions == tuple(caption.strip() for caption in ODD_CAPTIONS)
    assert not rejected()


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"image": "../secret.png", "caption": "x"}, "path leaves the folder", "own"),
        ({"image": "/etc/passwd", "caption": "x"}, "path leaves the folder", "own"),
        ({"image": "images/../../secret.png", "caption": "x"}, "path leaves the folder", "own"),
        ({"image": "images/none.png", "caption": "x"}, "not found", ""),
        ({"image": "images", "caption": "x"}, "a folder, not a picture", ""),
        ({"image": "captions.jsonl", "caption": "x"}, "not a picture", ""),
        ({"image": "empty.png", "caption": "x"}, "empty file (0 bytes)", ""),
        ({"image": "cut.png", "caption": "x"}, "damaged picture", ""),
        ({"image": "large.png", "caption": "x"}, "too large", "data.max_megapixels"),
        ({"caption": "x"}, "no picture named", "no field image"),
        ({"image": None, "caption": "x"}, "no picture named", "no field image"),
        ({"image": 7, "caption": "x"}, "no picture named", "7 is not a path"),
        ({"image": "a\0b.png", "caption": "x"}, "no picture named", "not a path"),
        ({"image": "images/0.png"}, "no caption", "no field caption"),
        ({"image": "images/0.png", "captions": []}, "no caption", "empty list"),
        ({"image": "images/0.png", "caption": ""}, "empty caption", "no character"),
        ({"image": "images/0.png", "caption": " \t\n"}, "empty caption", "blanks"),
        ({"image": "images/0.png", "caption": 3.5}, "caption is not text", "found 3.5"),
        ({"image": "images/0.png", "captions": {"a": 1}}, "caption is not text", "found {'a': 1}"),
        ({"image": "images/0.png", "caption": "\ud800"}, "caption is not text", "surrogate"),
        (
            {"image": "images/0.png", "caption": "Caption 0."},
            "same picture and caption again",
            "captions.jsonl:1",
        ),
        ({"image": "images/0.png", "caption": "x", "id": ["y"]}, "", ""),
        ({"image": "images/10.png", "caption": "x", "id": ["y"]}, "id is not text", "found ['y']"),
        (
            {"image": "images/10.png", "caption": "x", "id": "images/3.png"},
            "id of another picture",
            "images/3.png",
        ),
        (["images/0.png", "x"], "unreadable row", "found a list"),
        (None, "unreadable row", "found null"),
    ],
)
def test_a_bad_row_is_listed_and_the_others_used(
    build: Build, own: Path, row: Any, reason: str, detail: str
) -> None:
    (own / "empty.png").touch()
    Image.effect_noise((90, 90), 80).save(own / "cut.png")
    (own / "cut.png").write_bytes((own / "cut.png").read_bytes()[:2000])
    Image.new("1", (2000, 1000)).save(own / "large.png")
    (own.parent / "secret.png").write_bytes((own / "images" / "0.png").read_bytes())
    write(own, [*rows(), row])
    run(build, own, max_megapixels=1.0)
    assert len(read()) == 10
    listed = rejected()
    if not reason:
        assert listed == []
        return
    assert [one["reason"] for one in listed] == [reason]
    assert listed[0]["row"] == "captions.jsonl:11"
    assert detail in listed[0]["detail"]


def test_lines_that_are_no_json_or_no_utf8(build: Build, own: Path) -> None:
    file = write(own, rows())
    with file.open("ab") as out:
        out.write(b'\n   \n{"image": "images/0.png", \n\xff\xfe{}\n' + b"[" * 100_000 + b"\n")
    run(build, own)
    assert [row["row"] for row in rejected()] == [f"captions.jsonl:{line}" for line in (13, 14, 15)]
    assert {row["reason"] for row in rejected()} == {"unreadable row"}
    assert len(read()) == 10


def test_a_bad_caption_of_several_leaves_the_others(build: Build, own: Path) -> None:
    write(own, [*rows()[1:], {"image": "images/0.png", "captions": ["Good.", " ", None, "Good.", "Better."]}])
    run(build, own)
    assert read()["images/0.png"].captions == ("Good.", "Better.")
    reasons = [row["reason"] for row in rejected()]
    assert reasons == ["empty caption", "caption is not text", "same picture and caption again"]


def test_captions_are_cleaned_once_and_counted(build: Build, own: Path) -> None:
    given = ["Itâ€™s a “cafÃ©”.", "AT&amp;T", "\x00 &nbsp;", 'It\'s a "café".', "Plain: it’s\na line."]
    write(own, [*rows()[1:], {"image": "images/0.png", "captions": given}])
    run(build, own)
    assert read()["images/0.png"].captions == ('It\'s a "café".', "AT&T", "Plain: it's\na line.")
    assert [row["reason"] for row in rejected()] == ["empty caption", "same picture and caption again"]
    assert json.loads(Path("data/own/summary.json").read_text())["captions_cleaned"] == 3


def test_tags_of_html_are_taken_out_and_counted(build: Build, own: Path) -> None:
    given = [
        "<p>A <b>red</b>&nbsp;car.</p><p>It <i>shines</i>.<br/>A lot.</p>",
        "A sign reads <EXIT>, 3 < 4 and 5 > 4.",
        "<p></p>",
        "&lt;b&gt;Bold&lt;/b&gt; words <!-- not these -->here",
    ]
    write(own, [*rows()[1:], {"image": "images/0.png", "captions": given}])
    run(build, own)
    assert read()["images/0.png"].captions == (
        "A red\xa0car.\nIt shines.\nA lot.",
        "A sign reads <EXIT>, 3 < 4 and 5 > 4.",
        "Bold words here",
    )
    assert [row["reason"] for row in rejected()] == ["caption without a letter"]
    assert json.loads(Path("data/own/summary.json").read_text())["captions_with_html"] == 2


@pytest.mark.parametrize("caption", ["-", "0", "...", "12.5", "\ufffd\ufffd", "\u200b\u200d", "🌻"])
def test_a_caption_without_a_letter_says_nothing(build: Build, own: Path, caption: str) -> None:
    write(own, [*rows()[1:], {"image": "images/0.png", "caption": caption}])
    run(build, own)
    assert len(read()) == 9
    assert [row["reason"] for row in rejected()] == ["caption without a letter"]


def test_captions_that_are_alike_are_counted_in_a_warning(build: Build, own: Path, caplog) -> None:
    write(own, [row | {"caption": "A product."} if number < 4 else row for number, row in enumerate(rows())])
    run(build, own)
    assert "4 of 10 captions are the same, 'A product.'" in caplog.text
    caplog.clear()
    write(own, rows())
    run(build, own)
    assert "are the same" not in caplog.text


def test_of_two_caption_fields_the_user_names_one(build: Build, own: Path) -> None:
    """The short one must not be taken without a word."""
    write(own, [row | {"text": f"A long text of {row['caption']}"} for row in rows()], ".csv")
    with pytest.raises(UserError, match=r"fields caption and text; set data.folder.caption_column"):
        run(build, own)
    run(build, own, folder={"caption_column": "text"})
    assert read()["images/3.png"].captions == ("A long text of Caption 3.",)
    write(own, [{"image": row["image"], "title": row["caption"]} for row in rows()], ".csv")
    run(build, own, folder={"caption_column": "title"})
    assert len(read()) == 10
    # An empty one beside it does not count.
    write(own, [row | {"text": ""} for row in rows()], ".csv")
    run(build, own)
    assert len(read()) == 10


def test_too_many_unusable_rows_stop_and_are_named(build: Build, own: Path) -> None:
    lost = [{"image": f"images/lost {number}.png", "caption": "x"} for number in range(3)]
    write(own, [*rows(), *lost, {"image": "images/0.png", "caption": "-"}])
    with pytest.raises(UserError) as stopped:
        run(build, own, max_rejected=0.05)
    words = str(stopped.value)
    assert "4 of 14 rows cannot be used (3 x not found, 1 x caption without a letter)" in words
    assert "allows 5%" in words
    assert "captions.jsonl:14: images/0.png: caption without a letter: found '-'; " in words
    assert "captions.jsonl:11: images/lost 0.png: not found" in words
    assert "\n" not in words
    assert list(Path("data").iterdir()) == []
    run(build, own, max_rejected=0.3)
    assert len(rejected()) == 4
    # Nothing is lost with a row that comes twice.
    write(own, rows() * 2)
    run(build, own, max_rejected=0.0)
    assert len(rejected()) == 10


def test_the_message_of_no_usable_row_has_no_empty_parts(build: Build, own: Path) -> None:
    (own / "captions.jsonl").write_text("{\n")
    with pytest.raises(UserError) as stopped:
        run(build, own)
    assert ": :" not in str(stopped.value)
    assert "the first, captions.jsonl:1: unreadable row: not JSON" in str(stopped.value)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_with_another_delimiter_is_read_and_that_is_said(
    build: Build, own: Path, delimiter: str, caplog
) -> None:
    with caplog.at_level("INFO"):
        entries = [row | {"caption": f"One, {row['caption']}"} for row in rows()]
        with (own / "captions.csv").open("w", newline="") as out:
            table = csv.DictWriter(out, entries[0], delimiter=delimiter)
            table.writeheader()
            table.writerows(entries)
        run(build, own)
    assert read()["images/3.png"].captions == ("One, Caption 3.",)
    assert f"read with {delimiter!r} between the cells" in caplog.text


@pytest.mark.parametrize("name", ["captions.CSV", "Captions.csv", "CAPTIONS.CSV"])
def test_upper_case_and_windows_paths(build: Build, own: Path, name: str) -> None:
    (own / "images/a\\b.png").write_bytes((own / "images/9.png").read_bytes())
    entries = [row | {"image": row["image"].replace("/", "\\")} for row in rows()[:9]]
    write(own, [*entries, {"image": "images/a\\b.png", "caption": "A name with a backslash."}], ".csv")
    (own / "captions.csv").rename(own / name)
    for path in (own, own / name):
        run(build, path)
        assert set(read()) == {f"images/{number}.png" for number in range(9)} | {"images/a\\b.png"}


def test_csv_row_with_too_many_or_too_few_cells(build: Build, own: Path) -> None:
    file = write(own, rows(), ".csv")
    file.write_text(file.read_text() + "images/0.png,one,two\nimages/1.png\n", newline="")
    run(build, own)
    assert [(row["row"], row["reason"]) for row in rejected()] == [
        ("captions.csv:12", "unreadable row"),
        ("captions.csv:13", "no caption"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.jsonl", b"", "captions.jsonl: no rows"),
        ("captions.csv", b"", "captions.csv: no rows"),
        ("captions.json", b"[]", "captions.json: no rows"),
        ("captions.json", b"", "captions.json:1: not JSON"),
        ("captions.json", b'{"image": "a.png"}', "expected a list of objects, found an object"),
        ("captions.json", b'{"image": "a"}\n{"image": "b"}', "name a file with one object per line .jsonl"),
        ("captions.json", b"[" * 100_000, "nested too deeply"),
        ("captions.csv", b'image,caption\na.png,"open\n', "captions.csv:.*not CSV"),
        (
            "captions.csv",
            b"image&caption\na.png&x\n",
            "one column, 'image&caption': none of .* is in its header; set data.folder.separator",
        ),
        ("captions.csv", b"image,caption,caption\n", "column 'caption' comes twice"),
        ("captions.json", '[{"image": "a.png", "caption": "é"}]'.encode("latin-1"), "not UTF-8"),
        (
            "captions.jsonl",
            b'{"picture": "a.png", "caption": "x"}',
            "no row has a field image .*caption, picture",
        ),
        ("captions.jsonl", b'{"image": "a.png", "title": "x"}', "no row has a field caption"),
        (
            "captions.jsonl",
            b'{"image": "a.png", "caption": "x"}',
            "none of 1 rows can be used; .*a.png: not found",
        ),
        (
            "captions.txt",
            b"a.png x",
            "no captions.jsonl or captions.csv or another shape of docs/data.md in it",
        ),
    ],
)
def test_a_file_of_no_use_is_one_line(
    build: Build, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        run(build, tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert list(Path("data").iterdir()) == []


def test_two_captions_files_and_other_paths(build: Build, own: Path) -> None:
    write(own, rows())
    write(own, rows(), ".csv")
    with pytest.raises(UserError, match=r"both captions.csv and captions.jsonl"):
        run(build, own)
    with pytest.raises(UserError, match="not found; set data.path"):
        run(build, own / "none")
    with pytest.raises(UserError, match="ends in .jsonl, .csv, .json, .tsv, .xlsx, .parquet, .arrow, .tar"):
        run(build, own / "images" / "0.png")


def test_the_project_may_lie_beside_the_pictures(build: Build, own: Path) -> None:
    """A relative data.path gives image paths that hold from the project's root."""
    write(own, rows())
    run(build, Path("../own"))
    assert all(row.image.startswith("../own/images/") and Path(row.image).exists() for row in read().values())


def test_the_same_bytes_again(build: Build, own: Path) -> None:
    write(own, [*rows(), {"image": "images/none.png", "caption": "x"}])

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path("data/own").iterdir()}

    run(build, own)
    first = content()
    run(build, own)
    assert content() == first


def test_a_picture_replaced_by_one_of_the_same_size_changes_the_manifest(build: Build, own: Path) -> None:
    """Not its size alone: two uncompressed pictures of one shape have as many bytes."""
    write(own, [row | {"image": f"images/{number}.bmp"} for number, row in enumerate(rows())])
    pictures = sorted((own / "images").glob("*.png"))
    for picture in pictures:
        Image.open(picture).save(picture.with_suffix(".bmp"))

    def bytes_of_splits(**more: str) -> list[bytes]:
        run(build, own, **more)
        return [Path(f"data/own/{split}.parquet").read_bytes() for split in manifest.SPLITS]

    before, by_time = bytes_of_splits(), bytes_of_splits(digest="size_and_mtime")
    for picture in pictures:
        file = picture.with_suffix(".bmp")
        stat = file.stat()
        ImageOps.invert(Image.open(file)).save(file)
        assert file.stat().st_size == stat.st_size
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = bytes_of_splits()
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert bytes_of_splits() == after
    # The fast way looks at sizes and times alone.
    assert bytes_of_splits(digest="size_and_mtime") == by_time
    for picture in pictures:
        os.utime(picture.with_suffix(".bmp"))
    assert bytes_of_splits(digest="size_and_mtime") != by_time


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not beside the project")
def test_real_photographs(build: Build) -> None:
    run(build, PHOTOS)
    found = read()
    lines = [json.loads(line) for line in (PHOTOS / "captions.jsonl").read_text().splitlines()]
    assert {row.id: row.captions for row in found.values()} == {
        line["image"]: (line["caption"],) for line in lines
    }
    for row in found.values():
        with Image.open(row.image) as image:
            assert image.size == (row.width, row.height)
