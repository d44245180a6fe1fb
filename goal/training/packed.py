"""Training pictures scaled once: their views and those of their crops in arrays that are mapped into memory.

Decoding and scaling a photograph costs a hundred times what reading its view does. A packed view is what
clip.Preprocess.view makes, so a training sees the same bits as from the files.

views-<first row>.npy: uint8 (V, 3, S, S), for SHARD pictures in the order of the rows the view of each,
followed by those of its crops. Letters: V views of a shard, S side of the view in pixels.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

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


@dataclass(frozen=True)
class Shard:
    """The rows from the `first` on, with the boxes (image frame) of their crops.

    root: the folder to which the pictures' paths are relative.
    """

    first: int
    rows: tuple[Row, ...]
    crops: tuple[tuple[BoxTuple, ...], ...]
    spec: Spec
    max_megapixels: float
    root: Path
    folder: Path

    def __str__(self) -> str:
        return f"{self.path.name}, rows {self.first} to {self.first + len(self.rows) - 1}"

    @property
    def path(self) -> Path:
        return self.folder / f"views-{self.first:09d}.npy"

    @property
    def shape(self) -> tuple[int, ...]:
        side = self.spec.image_size
        return len(self.rows) + sum(map(len, self.crops)), 3, side, side


def prepare(
    rows: Sequence[Row],
    crops: Mapping[str, Sequence[BoxTuple]],
    spec: Spec,
    max_megapixels: float,
    workers: int,
) -> "Pictures":
    """The packed pictures of these rows and of their crops (boxes by row id), made where they are missing.

    They lie in work/packed/, named by all that decides their content; started again after a kill, finished
    shards are kept, and those of other content are removed once they are not in use. Raises UserError for a
    picture that cannot be read, a damaged shard and where the disk refuses, Interrupted on SIGTERM and
    SIGINT.
    """
    # Stages with crops and stages without take turns in a pipeline.
    kind = "crops" if crops else "whole"
    folder = paths.work_dir("packed") / f"{kind}-{_digest(rows, crops, spec)}"
    files.make_folder(folder.parent)
    used = _lock(folder, fcntl.LOCK_SH)
    files.make_folder(folder)
    shards = []
    for first in range(0, len(rows), SHARD):
        part = tuple(rows[first : first + SHARD])
        own = tuple(tuple(crops.get(row.id, ())) for row in part)
        shards.append(Shard(first, part, own, spec, max_megapixels, Path.cwd(), folder))
    with locks.held(folder / "packing.lock"):
        missing = [shard for shard in shards if not shard.path.exists()]
        if missing:
            log.info("packing %d pictures into %s", len(rows), folder)
            _pack(missing, max(workers, 1), len(rows))
    _remove_others(folder, kind)
    return Pictures(shards, used)


class Pictures:
    """Packed pictures by row number; may be handed to loader processes."""

    def __init__(self, shards: Sequence[Shard], used: IO[str]) -> None:
        """used: the lock that keeps other trainings from removing the shards while this object lives."""
        self._files = [(shard.path, shard.shape) for shard in shards]
        # Of each shard's pictures, where their views begin.
        self._starts = [np.cumsum([0, *(1 + len(own) for own in shard.crops)]) for shard in shards]
        self._used: IO[str] | None = used
        for file in self._files:
            _mapped(*file)

    def whole(self, picture: int) -> UInt8[Tensor, "3 S S"]:
        """The view of a picture."""
        return self._read(picture, 0)

    def crop(self, picture: int, number: int) -> UInt8[Tensor, "3 S S"]:
        """The view of a picture's crop."""
        return self._read(picture, 1 + number)

    def _read(self, picture: int, part: int) -> Tensor:
        shard, place = divmod(picture, SHARD)
        views = _mapped(*self._files[shard])
        return torch.from_numpy(np.array(views[self._starts[shard][place] + part]))

    def __getstate__(self) -> dict[str, object]:
        # The lock stays with the process that took it.
        return {**self.__dict__, "_used": None}


@lru_cache(maxsize=256)
def _mapped(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "V 3 S S"]:
    """The array of a shard, checked. Not all stay mapped: each takes an open file, of which there are few."""
    try:
        views = np.load(path, mmap_mode="r", allow_pickle=False)
        if (views.shape, views.dtype) != (shape, np.uint8):
            raise ValueError(f"{views.dtype} {views.shape} instead of {shape}")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); remove {path.parent} and pack again") from error
    return views


def _lock(folder: Path, how: int) -> IO[str]:
    """Lock a folder as its reader (LOCK_SH) or remover (LOCK_EX) until what is returned is closed.

    The file stays when the folder goes: a lock on a file that another process has removed would hold nobody.
    """
    lock = folder.with_name(f".{folder.name}.lock").open("a")
    fcntl.flock(lock, how)
    return lock


def _remove_others(folder: Path, kind: str) -> None:
    """Remove what was packed of other content and is not in use."""
    for other in set(folder.parent.glob(f"{kind}-*")) - {folder}:
        # BlockingIOError: in use.
        with suppress(OSError), _lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(other)


def _pack(missing: list[Shard], workers: int, total: int) -> None:
    sizes = [len(shard.rows) for shard in missing]
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
        for draft in missing[0].folder.glob(".views-*.tmp"):  # of processes that were killed
            draft.unlink(missing_ok=True)


def write(shard: Shard) -> None:
    """Make a shard; runs in whatever process the engine chose."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shard.shape}
    with files.atomic(shard.path) as draft, draft.open("wb") as file:
        # Not through a memory map: on a full disk, writing to one kills the process by a signal.
        np.lib.format.write_array_header_1_0(file, header)
        for row, crops in zip(shard.rows, shard.crops, strict=True):
            for view in _views(row, crops, shard):
                file.write(view.numpy())
            task_progress.advance(1)


def _views(row: Row, crops: Sequence[BoxTuple], shard: Shard) -> Iterator[UInt8[Tensor, "3 S S"]]:
    image = images.open_image(shard.root / row.image, shard.max_megapixels)
    if image.size != (row.width, row.height):
        raise UserError(f"{row.id}: {row.image} was changed since the manifest; `dvc repro` reads it anew")
    prepare = clip.preprocess(shard.spec)
    yield prepare.view(image)
    yield from (prepare.view(image.crop(boxes.pixels(box, image.size))) for box in crops)


def _digest(rows: Sequence[Row], crops: Mapping[str, Sequence[BoxTuple]], spec: Spec) -> str:
    """Digest of all that decides the bytes: code, view, the pictures' files (sizes and times), boxes."""
    known = hashlib.sha256(json.dumps([code.digest("training/packed"), spec.image_size, spec.view]).encode())
    for row in rows:
        state = slices.state(row.image)
        known.update(json.dumps([row.id, row.image, state, crops.get(row.id, ())]).encode())
    return known.hexdigest()[:16]
