"""Pictures from files: a usable one becomes upright 8-bit RGB (the image frame), any other is an error."""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from goal.datasets import inside
from goal.errors import UserError

# Named one by one: Pillow would also hand PostScript to an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# What Pillow's decoders raise on damaged files.
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError)
DAMAGE += (RuntimeError, struct.error, zlib.error)
# The kinds of HEIC, as a phone takes it, by which its files begin.
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# The largest value in 12 and in 16 bits, white.
WHITE_12, WHITE_16 = 4095, 65535
QUARTER_TURNS = (5, 6, 7, 8)
# What the digest of a picture can be of: its bytes, or its size and time of modification.
CONTENT, STAT = "content", "size_and_mtime"
THUMBNAIL = (8, 8)  # pixels
DIGEST_BYTES = 16


class ImageError(UserError):
    """A picture that cannot be used: `.reason` is one of few, to be counted; `.detail` says what exactly."""

    def __init__(self, path: Path | str, reason: str, detail: str = "") -> None:
        super().__init__(path, reason, detail)
        self.path = path
        self.reason = reason
        self.detail = " ".join(detail.split())

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.path), self.reason, self.detail)))


@dataclass(frozen=True)
class Probed:
    """A usable picture: (width, height) in the image frame, its file's digest, RGB thumbnail (8 * 8 * 3)."""

    size: tuple[int, int]
    digest: str
    thumbnail: bytes


def open_image(path: Path | str, max_megapixels: float) -> Image.Image:
    """The picture as RGB in the image frame: EXIF orientation applied, transparency over white, first frame.

    16-bit greys keep their scale; those in which no value exceeds 12 bits have them, as from a microscope or
    X-ray, and white is 4095. 32-bit greys, which have no fixed white, span their own range.
    Raises ImageError for a missing, empty, damaged or too large file (seen in the header, before decoding).
    """
    with _opened(path, max_megapixels) as image:
        return _rgb(ImageOps.exif_transpose(_jpeg(image) or image))


def probe(path: Path | str, max_megapixels: float, digest: str = CONTENT) -> Probed:
    """Decode a picture to its end; `digest` says of what its digest is. Raises as open_image does."""
    with _opened(path, max_megapixels) as image:
        width, height = image.size
        # Reading all of a JPEG at an eighth of its size finds a cut file at a third of the cost. `whole`: the
        # picture's part of what comes out; its last column and row may stand for fewer pixels.
        _, whole = image.draft(None, (1, 1)) or (None, None)
        small = _rgb(image).resize(THUMBNAIL, Image.Resampling.BILINEAR, whole)
        small.info = image.info
        turned = image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS
        size = (height, width) if turned else (width, height)
        return Probed(size, digest_of(path, digest), ImageOps.exif_transpose(small).tobytes())


def digest_of(path: Path | str, kind: str) -> str:
    """Hex digest of a picture's file: of its bytes (`content`) or of its size and time (`size_and_mtime`)."""
    if kind == CONTENT:
        with inside.opened(path) as file:
            # The decoder has just read the file, so that it comes from the page cache.
            return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=DIGEST_BYTES)).hexdigest()
    stat = os.stat(inside.file_of(path))
    known = f"{stat.st_size} {stat.st_mtime_ns}".encode()
    return hashlib.blake2b(known, digest_size=DIGEST_BYTES).hexdigest()


def probe_all(
    paths: Sequence[Path | str], max_megapixels: float, label: str, digest: str = CONTENT
) -> list[Probed | ImageError]:
    """Probe many pictures on all cores; `label` stands before the progress bar."""
    probed = partial(_probed, max_megapixels=max_megapixels, digest=digest)
    # A few pictures are read sooner than processes start.
    if len(paths) < 64:
        return [probed(path) for path in tqdm(paths, label, unit=" pictures")]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(probed, paths, chunksize=16)
        return list(tqdm(found, label, total=len(paths), unit=" pictures"))


def _probed(path: Path | str, max_megapixels: float, digest: str) -> Probed | ImageError:
    try:
        return probe(path, max_megapixels, digest)
    except ImageError as error:
        return error


@contextmanager
def _opened(path: Path | str, max_megapixels: float) -> Iterator[Image.Image]:
    # Pillow's own limit (179 megapixels) would stand in the way of a larger one; ours is checked below.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with inside.opened(path) as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_megapixels * 1e6:
                size = f"{width} x {height} = {width * height / 1e6:.0f} megapixels"
                raise ImageError(path, "too large", f"{size}, data.max_megapixels is {max_megapixels:g}")
            yield image
    except FileNotFoundError as error:
        raise ImageError(path, "not found") from error
    except IsADirectoryError as error:
        raise ImageError(path, "a folder, not a picture") from error
    except PermissionError as error:
        raise ImageError(path, "no permission to read it") from error
    except UnidentifiedImageError as error:
        raise ImageError(path, *_unidentified(path)) from error
    except DAMAGE as error:
        raise ImageError(path, "damaged picture", str(error)) from error


def _unidentified(path: Path | str) -> tuple[str, str]:
    """Why none of FORMATS fits a file: the reason and its detail."""
    with inside.opened(path) as file:
        head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        return "HEIC picture", "not read here; save it as JPEG or PNG"
    return ("not a picture", f"begins with {head!r}") if head else ("empty file (0 bytes)", "")


def _jpeg(image: Image.Image) -> Image.Image | None:
    """A colour JPEG decoded by libjpeg-turbo's own interface: Pillow's pixels in less time.

    None for any other picture, and for a damaged one, where Pillow decides and says what is wrong.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    image.fp.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(image.fp.read())
    except ValueError:
        return None
    decoded = Image.fromarray(pixels)
    # Where exif_transpose finds the orientation.
    decoded.info = image.info
    return decoded


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        return _from_grey(grey / ((WHITE_12 if grey.max() <= WHITE_12 else WHITE_16) / 255))
    if image.mode in ("I", "F"):
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        span = grey.max() - grey.min()
        return _from_grey((grey - grey.min()) * (255 / span if span else 0.0))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_grey(grey: np.ndarray) -> Image.Image:
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
