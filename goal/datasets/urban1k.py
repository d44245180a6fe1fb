"""Urban1k: 1,000 city pictures with long captions by GPT-4V, to test with (Long-CLIP, arXiv 2403.15378).

Layout: Urban1k.zip with Urban1k/image/<n>.jpg and Urban1k/caption/<n>.txt, whose first line is the caption.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from goal.datasets import released
from goal.datasets.captions_file import Line
from goal.datasets.manifest import Collected
from goal.datasets.released import Release
from goal.datasets.unpack import unpack
from goal.runtime.download import Remote, fetch

if TYPE_CHECKING:
    from goal.config import Params

RELEASE = Release(
    name="urban1k",
    page="https://huggingface.co/datasets/BeichenZhang/Urban1k",
    licence="the page states none: pictures of Visual Genome (CC BY 4.0), captions made with GPT-4V",
)
ARCHIVE = Remote(
    "https://huggingface.co/datasets/BeichenZhang/Urban1k/resolve/main/Urban1k.zip",
    size=80_586_923,
    sha256="08e42b3fada77abf7f890a087ed6e9f9fbba1dc143f9f09801ed83187ae617b8",
)
COUNT = 1000


def collect(params: "Params", target: Path) -> Collected:
    """Fetch, unpack and describe Urban1k, all of it for testing; nothing is written to `target`."""
    del target
    root = released.root(params, RELEASE)
    released.gallery(params, RELEASE, (COUNT,))
    folder = root / "Urban1k"
    if not folder.is_dir():
        (archive,) = fetch([ARCHIVE], root, "Urban1k")
        folder = unpack(archive, root / "unpacked") / "Urban1k"
    captions = sorted((folder / "caption").glob("*.txt"))
    released.expect(folder / "caption", "captions", len(captions), COUNT)
    return released.collect(params, RELEASE, _lines(captions), folder / "image")


def _lines(captions: list[Path]) -> Iterator[Line]:
    for path in captions:
        try:
            first, _, _ = path.read_text(encoding="utf-8").partition("\n")
        except UnicodeDecodeError as error:
            yield Line(path.name, {}, f"not UTF-8: {error.reason}")
        else:
            yield released.line(path.name, path.stem, f"{path.stem}.jpg", [first], "test")
