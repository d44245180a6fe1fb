"""The pictures of a shard: each fault kept to its picture."""

from PIL import Image

from goal.datasets.images import ImageError
from goal.datasets.manifest import Row
from goal.mining import reading


def row(name: str, width: int = 10, height: int = 10) -> Row:
    return Row(name, f"{name}.png", width, height, ("A.",), "x")


def test_a_picture_of_another_size_is_not_the_rows(tmp_path):
    Image.new("RGB", (10, 20)).save(tmp_path / "a.png")
    assert reading.picture(row("a", 10, 20), tmp_path, 1).size == (10, 20)
    odd = reading.picture(row("a", 20, 10), tmp_path, 1)
    assert str(odd) == "a.png: not of the manifest's size (10 x 20 pixels)"
    assert reading.kind(odd) == "not of the manifest's size"


def test_reasons_are_counted_without_their_details(tmp_path):
    assert reading.kind(reading.picture(row("none"), tmp_path, 1)) == "not found"
    assert reading.kind(ImageError("a.png", "too large: 9 x 9 = 0 megapixels")) == "too large"
    assert reading.kind(ImageError("a.png", "damaged picture (cut at 90 bytes)")) == "damaged picture"
