"""The benchmarks of a data set: their pictures, their texts, and which text describes which picture.

| benchmark | pictures | texts | source |
|---|---|---|---|
| test | the test pictures | all their captions | test.parquet |
| short | the same | their short captions | short.parquet |
| twins | n test pictures, then their n twins | one caption each | twins.parquet |
| joint | n test pictures, then a crop of each | n captions, then a sentence per crop | joint.parquet, pairs |

A picture and its twin are a minimal pair: the same scene with one attribute changed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from goal.config import paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.mining.mined import PAIRS, SIDES

BENCHMARKS = ("test", "short", "twins", "joint")
DIRECTIONS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Picture:
    """A picture file, or the part of it inside `box` (x1, y1, x2, y2; image frame, pixels, half open)."""

    path: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Gallery:
    """One benchmark: text j describes picture `text_to_picture[j]`.

    `ids` holds the test picture of each picture: a whole and its crop, or a picture and its twin, share one.
    `attributes` holds what differs in each minimal pair of `twins`; other benchmarks have none.
    """

    benchmark: str
    pictures: tuple[Picture, ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    text_to_picture: tuple[int, ...]
    attributes: tuple[str, ...] = ()
    source: str = ""  # of the pictures, as data.source has it

    def unanswerable(self, files: Mapping[str, str]) -> dict[str, int]:
        """Queries of each direction whose right answer cannot rank first, since ties count as errors.

        text_to_image: the texts of a picture that is there again under another name. image_to_text: the
        pictures all of whose texts another picture has too. files: the digest of every picture file, by path.
        """
        shown = [(files[picture.path], picture.box) for picture in self.pictures]
        copies = Counter(shown)
        pairs = set(zip(self.texts, self.text_to_picture, strict=True))
        owners = Counter(text for text, _ in pairs)
        own = {picture for text, picture in pairs if owners[text] == 1}
        return {
            "text_to_image": sum(copies[shown[picture]] > 1 for picture in self.text_to_picture),
            "image_to_text": len(set(self.text_to_picture) - own),
        }


def load(data_set: str, mined: bool = True) -> tuple[list[Gallery], dict[str, str]]:
    """The benchmarks of a data set, and for each benchmark that it lacks the reason.

    mined: pairs/test was mined from this set, so without joint.parquet its best pairs give the crops.
    Raises UserError for a manifest that cannot be read or names test pictures that do not exist.
    """
    test = manifest.read(paths.manifest(data_set, "test"))
    makers: dict[str, Callable[[str, list[Row]], Gallery | str]] = {
        "test": _test,
        "short": _short,
        "twins": _twins,
        "joint": partial(_joint, mined=mined),
    }
    found, missing = [], {}
    for benchmark in BENCHMARKS:
        made = makers[benchmark](data_set, test) if test else f"{data_set} has no test pictures"
        if isinstance(made, Gallery):
            found.append(replace(made, source=test[0].source))
        else:
            missing[benchmark] = made
    return found, missing


def _test(data_set: str, test: list[Row]) -> Gallery | str:
    return _retrieval("test", test)


def _short(data_set: str, test: list[Row]) -> Gallery | str:
    path = paths.manifest(data_set, "short")
    return _retrieval("short", manifest.read(path)) if path.exists() else f"{data_set} has no short captions"


def _twins(data_set: str, test: list[Row]) -> Gallery | str:
    path = paths.manifest(data_set, "twins")
    if not path.exists():
        return f"{data_set} has no twins"
    twins = manifest.read_table(path, manifest.TWINS).to_pylist()
    if not twins:
        return f"{path} is empty"
    rows = _rows(test, [twin["twin_of"] for twin in twins], path)
    pictures = [row.image for row in rows] + [twin["image"] for twin in twins]
    texts = [row.captions[0] for row in rows] + [twin["captions"][0] for twin in twins]
    return Gallery(
        benchmark="twins",
        pictures=tuple(map(Picture, pictures)),
        ids=tuple(row.id for row in rows) * 2,
        texts=tuple(texts),
        text_to_picture=tuple(range(len(texts))),
        attributes=tuple(twin["attribute"] for twin in twins),
    )


def _joint(data_set: str, test: list[Row], mined: bool) -> Gallery | str:
    path = paths.manifest(data_set, "joint")
    found = list(_own_crops(path, test) if path.exists() else _mined_crops(test) if mined else [])
    if not found:
        return f"{data_set} has no crops of test pictures: neither joint.parquet nor usable pairs of test"
    rows, captions, crops, sentences = zip(*found, strict=True)
    return Gallery(
        benchmark="joint",
        pictures=(*(Picture(row.image) for row in rows), *crops),
        ids=tuple(row.id for row in rows) * 2,
        texts=(*captions, *sentences),
        text_to_picture=tuple(range(2 * len(rows))),
    )


def _retrieval(benchmark: str, rows: list[Row]) -> Gallery | str:
    if not rows:
        return "no pictures"
    return Gallery(
        benchmark=benchmark,
        pictures=tuple(Picture(row.image) for row in rows),
        ids=tuple(row.id for row in rows),
        texts=tuple(caption for row in rows for caption in row.captions),
        text_to_picture=tuple(number for number, row in enumerate(rows) for _ in row.captions),
    )


# A test picture, its caption, a crop of that picture and the sentence that describes the crop.
Crop = tuple[Row, str, Picture, str]


def _own_crops(path: Path, test: list[Row]) -> Iterator[Crop]:
    crops = manifest.read_table(path, manifest.JOINT).to_pylist()
    rows = _rows(test, [crop["of"] for crop in crops], path)
    for row, crop in zip(rows, crops, strict=True):
        yield row, row.captions[0], Picture(crop["image"], _box(crop)), crop["caption"]


def _mined_crops(test: list[Row]) -> Iterator[Crop]:
    """The best usable pair of each picture, of equal ones the pair of the first sentence."""
    folder = paths.pairs_dir("test")
    best: dict[str, dict] = {}
    for shard in sorted(folder.glob("shard-*.parquet")):
        for pair in manifest.read_table(shard, PAIRS, "pairs").to_pylist():
            if not pair["dropped"] and (pair["id"] not in best or _order(pair) < _order(best[pair["id"]])):
                best[pair["id"]] = pair
    rows = _rows(test, sorted(best), folder)
    for row in rows:
        pair = best[row.id]
        caption = row.captions[pair["caption"]]
        yield row, caption, Picture(row.image, _box(pair)), caption[pair["start"] : pair["end"]]


def _rows(test: list[Row], ids: list[str], source: Path) -> list[Row]:
    """The test pictures with these ids, which are from the file or folder `source`."""
    known = {row.id: row for row in test}
    for name in ids:
        if name not in known:
            raise UserError(f"{source}: {name!r} is not a test picture; run `dvc repro`")
    return [known[name] for name in ids]


def _order(pair: dict) -> tuple[float, int, int]:
    return -pair["similarity"], pair["caption"], pair["sentence"]


def _box(row: dict) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (row[side] for side in SIDES)
    return x1, y1, x2, y2
