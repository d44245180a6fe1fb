"""Training pictures scaled once: views and crops in tar shards, as WebDataset has them, with an index.

Decoding and scaling a photograph costs a hundred times what reading its view does. A packed picture is the
very square of pixels that clip.Preprocess makes, uncompressed, so the tensors are those from the files, bit
for bit. The shards are the same bytes on every run.

A sample: <row number>.json (id and captions), <row number>.whole.npy and <row number>.crop<pair number>.npy,
each uint8 (S, S, 3) RGB. Beside each shard lies a table of where its arrays are; it is written last, so what
has one is whole. Letters: S side of the view in pixels.
"""

import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from goal import boxes, clip
from goal.boxes import BoxTuple
from goal.config import paths
from goal.datasets import images, slices
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.model.network import Spec
from goal.runtime import code, files, locks, task_progress, tasks

log = logging.getLogger(__name__)

SHARD = 1000  # pictures
# offset, size: of the array in its shard, bytes.
INDEX = pa.schema([(name, pa.int64()) for name in ("picture", "part", "shard", "offset", "size")])
WHOLE = -1  # the part that is no crop
IN_USE = "in-use.lock"


@dataclass(frozen=True)
class Work:
    """One shard, the number-th: rows first.. with the boxes (image frame) of their crops.

    root: the folder to which the pictures' paths are relative.
    """

    number: int
    first: int
    rows: tuple[Row, ...]
    crops: tuple[tuple[BoxTuple, ...], ...]
    spec: Spec
    max_megapixels: float
    root: Path
    folder: Path

    def __str__(self) -> str:
        return f"{self.tar.name}, rows {self.first} to {self.first + len(self.rows) - 1}"

    @property
    def tar(self) -> Path:
        return self.folder / f"pictures-{self.number:06d}.tar"

    @property
    def index(self) -> Path:
        return self.tar.with_suffix(".parquet")


def prepare(
    rows: Sequence[Row],
    crops: Mapping[str, Sequence[BoxTuple]],
    spec: Spec,
    max_megapixels: float,
    workers: int,
) -> "Pictures":
    """The packed pictures of these rows and of their crops (boxes by row id), made where they are missing.

    They lie in work/packed/, named by all that decides their content; started again after a kill, finished
    shards are kept, and those of another content go once they are not in use. Raises UserError for a picture
    that cannot be read, or where the disk refuses, Interrupted on SIGTERM and SIGINT.
    """
    # Stages with crops and stages without take turns in a pipeline.
    kind = "crops" if crops else "whole"
    folder = paths.work_dir("packed") / f"{kind}-{_digest(rows, crops, spec)}"
    used = _in_use(folder)
    with locks.held(folder / "packing.lock"):
        shards = [
            Work(
                number,
                first,
                tuple(rows[first : first + SHARD]),
                tuple(tuple(crops.get(row.id, ())) for row in rows[first : first + SHARD]),
                spec,
                max_megapixels,
                Path.cwd(),
                folder,
            )
            for number, first in enumerate(range(0, len(rows), SHARD))
        ]
        missing = [shard for shard in shards if not shard.index.exists()]
        if missing:
            log.info("packing %d pictures into %s", len(rows), folder)
            _pack(missing, max(workers, 1), len(rows))
    _forget_others(folder, kind)
    return Pictures(folder, used)


class Pictures:
    """Packed pictures by row number; may be handed to loader processes."""

    def __init__(self, folder: Path, used: IO[str]) -> None:
        """folder: of whole shards; used: what tells others so, as long as this object lives."""
        tables = [pq.read_table(path) for path in sorted(folder.glob("pictures-*.parquet"))]
        table = pa.concat_tables([INDEX.empty_table(), *tables])
        self._places = np.stack([table[name].to_numpy() for name in ("shard", "offset", "size")], axis=1)
        # Rows are sorted by picture, then part: the whole picture, then its crops.
        self._first = np.flatnonzero(table["part"].to_numpy() == WHOLE)
        self._folder = folder
        self._open: dict[int, int] = {}
        self._used: IO[str] | None = used

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
        return {**self.__dict__, "_open": {}, "_used": None}


def _in_use(folder: Path) -> IO[str]:
    """Make the folder; others take it for an old one only once what is returned is closed or lost."""
    while True:
        files.make_folder(folder)
        with suppress(FileNotFoundError):
            lock = (folder / IN_USE).open("w")
            fcntl.flock(lock, fcntl.LOCK_SH)
            # Another training may have removed the folder until this moment.
            if os.path.samestat(os.fstat(lock.fileno()), (folder / IN_USE).stat()):
                return lock


def _forget_others(folder: Path, kind: str) -> None:
    """Remove what was packed of another content and is not in use."""
    for other in folder.parent.glob(f"{kind}-*"):
        if other != folder:
            with suppress(OSError), (other / IN_USE).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other)


def _pack(missing: list[Work], workers: int, total: int) -> None:
    sizes = [len(work.rows) for work in missing]
    try:
        tasks.run(
            write,
            missing,
            sizes,
            workers=workers,
            modules=[__name__],
            label="packed pictures",
            total=total,
            done=total - sum(sizes),
        )
    finally:
        for draft in missing[0].folder.glob(".pictures-*.tmp"):  # of processes that were killed
            draft.unlink(missing_ok=True)


def write(work: Work) -> None:
    """Make a shard, then its index; runs in whatever process the engine chose."""
    try:
        from webdataset import TarWriter
    except ModuleNotFoundError as error:
        raise UserError("train.packed: needs a package: pip install -e '.[scale]'") from error
    with files.atomic(work.tar) as draft, draft.open("wb") as file, TarWriter(file, mtime=0) as tar:
        for number, (row, crops) in enumerate(zip(work.rows, work.crops, strict=True), work.first):
            tar.write(_sample(number, row, crops, work))
            task_progress.advance(1)
    with tarfile.open(work.tar) as tar:
        places = sorted(place for member in tar if (place := _place(member)))
    lines = [(picture, part, work.number, offset, size) for picture, part, offset, size in places]
    with files.atomic(work.index) as draft:
        pq.write_table(pa.table(list(zip(*lines, strict=True)), schema=INDEX), draft)


def _sample(number: int, row: Row, crops: Sequence[BoxTuple], work: Work) -> dict[str, object]:
    image = images.open_image(work.root / row.image, work.max_megapixels)
    if image.size != (row.width, row.height):
        raise UserError(f"{row.id}: {row.image} was changed since the manifest; `dvc repro` reads it anew")
    parts = {f"crop{index}.npy": image.crop(boxes.pixels(box, image.size)) for index, box in enumerate(crops)}
    prepare = clip.preprocess(work.spec)
    squares = {name: np.asarray(prepare.square(part)) for name, part in {"whole.npy": image, **parts}.items()}
    return {"__key__": f"{number:09d}", "json": {"id": row.id, "captions": list(row.captions)}, **squares}


def _place(member: tarfile.TarInfo) -> tuple[int, int, int, int] | None:
    key, _, name = member.name.partition(".")
    part = name.removesuffix(".npy")
    if part == name:
        return None
    number = WHOLE if part == "whole" else int(part.removeprefix("crop"))
    return int(key), number, member.offset_data, member.size


def _digest(rows: Sequence[Row], crops: Mapping[str, Sequence[BoxTuple]], spec: Spec) -> str:
    """Digest of all that decides the bytes: code, view, the pictures' files (sizes and times), boxes."""
    known = hashlib.sha256(json.dumps([code.digest("training/packed"), spec.image_size, spec.view]).encode())
    for row in rows:
        state = slices.state(Path(row.image))
        known.update(json.dumps([row.id, row.image, row.captions, state, crops.get(row.id, ())]).encode())
    return known.hexdigest()[:16]
