"""Training pictures scaled once: views and crops in tar shards, as WebDataset has them, with an index.

Decoding and scaling a photograph costs a hundred times what reading its view does. A packed picture is the
very square of pixels that clip.Preprocess makes, uncompressed, so the tensors are those from the files, bit
for bit. The shards are the same bytes on every run.

A sample: <row number>.json (id and captions), <row number>.whole.npy and <row number>.crop<pair number>.npy,
each uint8 (S, S, 3) RGB. Letters: S side of the view in pixels.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from goal import boxes, files, images, layout
from goal.boxes import BoxTuple, View
from goal.datasets import slices
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.model.network import Spec

log = logging.getLogger(__name__)

SHARD = 1000  # pictures
# offset, size: of the array in its shard, bytes.
INDEX = pa.schema([(name, pa.int64()) for name in ("picture", "part", "shard", "offset", "size")])
WHOLE = -1  # the part that is no crop


@dataclass(frozen=True)
class Work:
    """One shard: rows first.. with the boxes (image frame) of their crops."""

    first: int
    rows: tuple[Row, ...]
    crops: tuple[tuple[BoxTuple, ...], ...]
    spec: Spec
    max_megapixels: float
    path: Path


def prepare(
    rows: Sequence[Row],
    crops: Mapping[str, Sequence[BoxTuple]],
    spec: Spec,
    max_megapixels: float,
    workers: int,
) -> "Pictures":
    """The packed pictures of these rows and of their crops (boxes by row id), made where they are missing.

    They lie in work/packed/<digest of all that decides their content>; started again after a kill, finished
    shards are kept. Raises UserError for a picture that cannot be read, or where the disk refuses.
    """
    folder = layout.work_dir("packed") / _digest(rows, crops, spec)
    if not (folder / "index.parquet").exists():
        log.info("packing %d pictures into %s", len(rows), folder)
        files.make_folder(folder)
        shards = [
            Work(
                first,
                tuple(rows[first : first + SHARD]),
                tuple(tuple(crops.get(row.id, ())) for row in rows[first : first + SHARD]),
                spec,
                max_megapixels,
                folder / f"pictures-{first // SHARD:06d}.tar",
            )
            for first in range(0, len(rows), SHARD)
        ]
        _write_all(shards, workers, folder / "index.parquet")
    return Pictures(folder)


class Pictures:
    """Packed pictures by row number; may be handed to loader processes."""

    def __init__(self, folder: Path) -> None:
        table = pq.read_table(folder / "index.parquet", columns=INDEX.names)
        self._places = np.stack([table[name].to_numpy() for name in ("shard", "offset", "size")], axis=1)
        # Rows are sorted by picture, then part: the whole picture, then its crops.
        self._first = np.flatnonzero(table["part"].to_numpy() == WHOLE)
        self._folder = folder
        self._open: dict[int, int] = {}

    def whole(self, picture: int) -> Image.Image:
        """The view (S, S) of a picture; clip.Preprocess leaves its pixels as they are."""
        return self._read(picture, WHOLE)

    def crop(self, picture: int, number: int) -> Image.Image:
        """The view (S, S) of a picture's crop."""
        return self._read(picture, number)

    def _read(self, picture: int, part: int) -> Image.Image:
        shard, offset, size = self._places[self._first[picture] + 1 + part].tolist()
        if shard not in self._open:
            self._open[shard] = os.open(self._folder / f"pictures-{shard:06d}.tar", os.O_RDONLY)
        content = os.pread(self._open[shard], size, offset)
        return Image.fromarray(np.load(io.BytesIO(content), allow_pickle=False))

    def __getstate__(self) -> dict[str, object]:
        # Open files stay in the process that opened them.
        return {**self.__dict__, "_open": {}}


def _write_all(shards: list[Work], workers: int, index: Path) -> None:
    places: list[list[int]] = []
    total = sum(len(shard.rows) for shard in shards)
    with (
        ProcessPoolExecutor(max(workers, 1)) as pool,
        tqdm(desc="packed pictures", total=total, unit=" pictures") as bar,
    ):
        for number, (shard, found) in enumerate(zip(shards, pool.map(write, shards), strict=True)):
            places += [[picture, part, number, offset, size] for picture, part, offset, size in sorted(found)]
            bar.update(len(shard.rows))
    columns = np.array(places, dtype=np.int64).reshape(-1, len(INDEX)).T
    with files.atomic(index) as draft:
        pq.write_table(pa.table(list(columns), schema=INDEX), draft)


def write(work: Work) -> list[tuple[int, int, int, int]]:
    """Make a shard where it is missing; (picture, part, offset, size in bytes) of each array in it."""
    if not work.path.exists():
        try:
            from webdataset import TarWriter
        except ModuleNotFoundError as error:
            raise UserError("train.packed: needs a package: pip install 'goal-clip[scale]'") from error
        with files.atomic(work.path) as draft, draft.open("wb") as file, TarWriter(file, mtime=0) as tar:
            for number, (row, crops) in enumerate(zip(work.rows, work.crops, strict=True), work.first):
                tar.write(_sample(number, row, crops, work))
    with tarfile.open(work.path) as tar:
        return [place for member in tar if (place := _place(member))]


def _sample(number: int, row: Row, crops: Sequence[BoxTuple], work: Work) -> dict[str, object]:
    image = images.open_image(row.image, work.max_megapixels)
    if image.size != (row.width, row.height):
        raise UserError(f"{row.id}: {row.image} was changed since the manifest; `dvc repro` reads it anew")
    parts = {f"crop{index}.npy": image.crop(boxes.pixels(box, image.size)) for index, box in enumerate(crops)}
    squares = {name: _square(part, work.spec) for name, part in {"whole.npy": image, **parts}.items()}
    return {"__key__": f"{number:09d}", "json": {"id": row.id, "captions": list(row.captions)}, **squares}


def _square(image: Image.Image, spec: Spec) -> np.ndarray:
    """The view (S, S, 3) of a picture: what clip.Preprocess turns into a tensor."""
    view = View(image.size, spec.image_size, spec.view)
    left, top = view.offset
    box = (left, top, left + spec.image_size, top + spec.image_size)
    return np.asarray(image.resize(view.resized, Image.Resampling.BICUBIC).crop(box))


def _place(member: tarfile.TarInfo) -> tuple[int, int, int, int] | None:
    key, _, name = member.name.partition(".")
    part = name.removesuffix(".npy")
    if part == name:
        return None
    number = WHOLE if part == "whole" else int(part.removeprefix("crop"))
    return int(key), number, member.offset_data, member.size


def _digest(rows: Sequence[Row], crops: Mapping[str, Sequence[BoxTuple]], spec: Spec) -> str:
    """Digest of all that decides the bytes: the pictures' files (sizes and times), boxes, the view."""
    known = hashlib.sha256(json.dumps([spec.image_size, spec.view]).encode())
    for row in rows:
        state = slices.state(Path(row.image))
        known.update(json.dumps([row.id, row.image, row.captions, state, crops.get(row.id, ())]).encode())
    return known.hexdigest()[:16]
