"""Urban1k: 1,000 city pictures with long captions by GPT-4V, to test with (Long-CLIP, arXiv 2403.15378).

Layout: Urban1k.zip with Urban1k/image/<n>.jpg and Urban1k/caption/<n>.txt, whose first line is the caption.
"""

from collections.abc import Iterator
from pathlib import Path

from goal.datasets import released
from goal.datasets.captions_file import Line
from goal.datasets.unpack import unpack
from goal.runtime.download import Remote, fetch

ARCHIVE = Remote(
    "https://huggingface.co/datasets/BeichenZhang/Urban1k/resolve/main/Urban1k.zip",
    size=80_586_923,
    sha256="08e42b3fada77abf7f890a087ed6e9f9fbba1dc143f9f09801ed83187ae617b8",
)


def read(root: Path, gallery: int) -> tuple[Iterator[Line], Path]:
    """The rows, all of them for testing, and the folder of their pictures; fetched and unpacked."""
    folder = root / "Urban1k"
    if not folder.is_dir():
        folder = unpack(*fetch([ARCHIVE], root, "Urban1k"), root / "unpacked") / folder.name
    captions = sorted((folder / "caption").glob("*.txt"))
    released.expect(folder / "caption", "captions", len(captions), gallery)
    return map(_line, captions), folder / "image"


def _line(path: Path) -> Line:
    try:
        first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError as error:
        return Line(path.name, {}, f"not UTF-8: {error.reason}")
    return released.line(path.name, path.stem, f"{path.stem}.jpg", [first], "test")
