"""Real files of every awkward kind: used correctly, or refused in one line that names the file."""

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goal.datasets.images import FORMATS, ImageError, open_image, probe, probe_all
from goal.errors import UserError

LIMIT = 200.0  # megapixels
WHITE = (255, 255, 255)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A picture without symmetry, so that every turn of it differs."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a grey PNG that promises a picture and ends."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return start + struct.pack(">I", 1 << 20) + b"IDAT" + zlib.compress(bytes(100))


def reason(path: Path, limit: float = LIMIT) -> str:
    """The reason why both ways of reading refuse a file."""
    with pytest.raises(ImageError) as opened:
        open_image(path, limit)
    with pytest.raises(ImageError) as probed:
        probe(path, limit)
    assert opened.value.reason == probed.value.reason
    assert str(opened.value).startswith(f"{path}: ")
    assert "\n" not in str(opened.value)
    assert isinstance(opened.value, UserError)
    return opened.value.reason


def test_missing(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.jpg") == "not found"


def test_folder(tmp_path: Path) -> None:
    assert reason(tmp_path) == "a folder, not a picture"


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    assert reason(tmp_path / "x.jpg") == "empty file (0 bytes)"


@pytest.mark.parametrize("content", [b"no picture at all", b"\0" * 500, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    assert reason(tmp_path / "x.jpg") == "not a picture"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif", "bmp", "jp2"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    assert open_image(path, LIMIT).size == probe(path, LIMIT).size == (300, 200)
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert reason(path) in ("damaged picture", "not a picture")


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_the_damage_it_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    """Bytes changed, cut off and repeated, in the header and elsewhere: each library complains in its way."""
    path = tmp_path / "x"
    photo().save(path, kind)
    whole, draw, reasons = path.read_bytes(), np.random.default_rng(0), []
    for number in range(150):
        broken = bytearray(whole)
        for place in draw.integers((len(whole), 300)[number % 2], size=4) % len(whole):
            broken[place] = draw.integers(256)
        cut = int(draw.integers(len(whole)))
        path.write_bytes(broken[: cut if number % 5 == 0 else None] + whole[cut:] * (number % 7 == 0))
        for read in (open_image, probe):
            try:
                read(path, LIMIT)
            except ImageError as error:
                reasons.append(error.reason)
    assert len(reasons) > 20
    assert set(reasons) <= {"damaged picture", "not a picture", "too large"}


JPEGS = [
    {},
    {"quality": 30, "progressive": True},
    {"subsampling": "4:4:4"},
    {"subsampling": "4:2:2", "optimize": True},
    {"keep_rgb": True},
    {"restart_marker_rows": 1},
]


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (300, 200)])
def test_a_jpeg_has_pillow_s_pixels(tmp_path: Path, size: tuple[int, int], options: dict) -> None:
    """Also one with bytes behind its end, and one whose stream libjpeg complains about but reads."""
    path = tmp_path / "x.jpg"
    photo(*size).save(path, **options)
    whole = path.read_bytes()
    for content in (whole, whole + b"more", whole[:-2] + b"\x12\x34" + whole[-2:]):
        path.write_bytes(content)
        with Image.open(path) as theirs:
            assert np.array_equal(np.asarray(open_image(path, LIMIT)), np.asarray(theirs.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.asarray(photo())
    # What a camera that was held so stores: the inverse of the turn that a viewer makes.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    lossless = (
        {"lossless": True}
        if suffix == "webp"
        else {"quality": 100, "subsampling": 0}
        if suffix == "jpg"
        else {}
    )
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **lossless)
    image = open_image(path, LIMIT)
    assert image.size == probe(path, LIMIT).size == (60, 40)
    assert np.abs(np.asarray(image).astype(int) - upright).max() <= (6 if suffix == "jpg" else 0)


def test_broken_exif_is_no_fault_of_the_picture(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert open_image(tmp_path / "x.jpg", LIMIT).size == probe(tmp_path / "x.jpg", LIMIT).size == (60, 40)


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "x.jpg", quality=100)
    image = open_image(tmp_path / "x.jpg", LIMIT)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - (0, 255, 255)).max() < 4


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_keeps_its_scale(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / f"x.{suffix}")
    image = open_image(tmp_path / f"x.{suffix}", LIMIT)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bit_grey_spans_its_own_range(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.array([[-10, 0, 10]], dtype=kind)).save(tmp_path / "x.tiff")
    assert np.asarray(open_image(tmp_path / "x.tiff", LIMIT))[0, :, 0].tolist() == [0, 128, 255]


def test_grey_of_one_value_and_nan(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)).save(tmp_path / "x.tiff")
    assert np.asarray(open_image(tmp_path / "x.tiff", LIMIT)).tolist() == [[[0, 0, 0]] * 2] * 2


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "PA"])
def test_transparency_lies_over_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    path = tmp_path / ("x.tiff" if mode == "PA" else "x.png")
    (clear if mode == "PA" else clear.convert(mode)).save(path)
    image = open_image(path, LIMIT)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (0, 0, 0)
    assert image.getpixel((3, 3)) == WHITE


def test_palette_and_its_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 7, 7])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "x.png", transparency=2)
    pixels = [open_image(tmp_path / "x.png", LIMIT).getpixel((x, 0)) for x in range(3)]
    assert pixels == [(10, 20, 30), (200, 100, 50), WHITE]


@pytest.mark.parametrize("suffix", ["tiff", "png"])
def test_twelve_bits_in_sixteen_are_not_black(tmp_path: Path, suffix: str) -> None:
    ramp = np.array([[0, 1024, 2048, 4095]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
    assert np.asarray(open_image(tmp_path / f"x.{suffix}", LIMIT))[0, :, 0].tolist() == [0, 64, 128, 255]
    # One value beyond, and they are 16 bits.
    Image.fromarray(np.append(ramp, [[4096]], axis=1).astype(np.uint16)).save(tmp_path / f"x.{suffix}")
    assert np.asarray(open_image(tmp_path / f"x.{suffix}", LIMIT))[0, :, 0].tolist() == [0, 4, 8, 16, 16]


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevc"])
def test_heic_is_named(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(ImageError, match="x.heic: HEIC picture: not read here; save it as JPEG or PNG"):
        open_image(tmp_path / "x.heic", LIMIT)


def test_what_is_no_picture_shows_how_it_begins(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("<!DOCTYPE html><p>Not found</p>")
    with pytest.raises(ImageError, match="not a picture: begins with b'<!DOCTYPE html>"):
        probe(tmp_path / "x.jpg", LIMIT)


def test_thumbnails_of_copies_are_nearly_the_same(tmp_path: Path) -> None:
    """Also of a picture whose sides no eighth divides, and of one that its EXIF data turns."""
    draw = np.random.default_rng(0)
    whole = Image.fromarray(draw.integers(60, 200, (7, 9, 3), np.uint8)).resize((427, 325))
    other = Image.fromarray(draw.integers(60, 200, (7, 9, 3), np.uint8)).resize((427, 325))
    exif = Image.Exif()
    exif[0x0112] = 6
    copies = {"x.png": whole, "x.jpg": whole, "half.webp": whole.resize((213, 162)), "other.png": other}
    for name, image in copies.items():
        image.save(tmp_path / name)
    whole.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    thumbnails = {
        name: np.frombuffer(probe(tmp_path / name, LIMIT).thumbnail, np.uint8).astype(int)
        for name in (*copies, "turned.jpg")
    }
    differ = {name: np.abs(one - thumbnails["x.png"]).max() for name, one in thumbnails.items()}
    assert all(differ[name] <= 8 for name in ("x.jpg", "half.webp", "turned.jpg")), differ
    assert differ["other.png"] > 20


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_pixel(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (1, 1), 255 if mode != "RGB" else WHITE).save(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png", LIMIT).getpixel((0, 0)) == WHITE
    assert probe(tmp_path / "x.png", LIMIT).size == (1, 1)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "x.gif", LIMIT).getpixel((2, 2)) == (255, 0, 0)


def test_huge_is_seen_in_the_header(tmp_path: Path) -> None:
    """The data is missing: who decoded first would call it damaged."""
    (tmp_path / "x.png").write_bytes(png_header(20_000, 15_000))
    assert reason(tmp_path / "x.png") == "too large"
    with pytest.raises(ImageError, match="20000 x 15000 = 300 megapixels, data.max_megapixels is 200"):
        probe(tmp_path / "x.png", LIMIT)


def test_the_limit_is_ours_not_pillows(tmp_path: Path) -> None:
    """Pillow alone refuses 190 megapixels, whatever follows the header."""
    (tmp_path / "x.png").write_bytes(png_header(19_000, 10_000))
    assert reason(tmp_path / "x.png") == "damaged picture"
    photo().save(tmp_path / "small.png")
    assert reason(tmp_path / "small.png", limit=0.001) == "too large"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_no_permission(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    assert reason(tmp_path / "x.png") == "no permission to read it"


def test_probe_all_keeps_the_order_and_brings_errors_from_other_processes(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.png")
    paths = [tmp_path / ("x.png" if number % 10 else "none.png") for number in range(80)]
    found = probe_all(paths, LIMIT, "test")
    assert [number for number, one in enumerate(found) if isinstance(one, ImageError)] == list(
        range(0, 80, 10)
    )
    assert {one.size for one in found if not isinstance(one, ImageError)} == {(60, 40)}
    assert str(found[0]) == f"{tmp_path / 'none.png'}: not found"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "too large", "9 x 9")))  # noqa: S301 our own bytes
    assert (str(error), error.reason, error.detail) == ("a.png: too large: 9 x 9", "too large", "9 x 9")
