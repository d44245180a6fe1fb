"""Work on a manifest's rows in shards that survive a kill: a finished shard is a whole file, made once.

The work on a shard is a pure function of its rows, so any engine may run it anywhere
(goal.runtime.tasks), and the files are the same bytes whichever process on machines of one kind made them.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from goal.config import paths
from goal.runtime import code, files, locks, tasks

log = logging.getLogger(__name__)

NOTES = b"goal.notes"
PUBLISHED = "published"
ROW_GROUP = 16384


class Work(Protocol):
    """What makes one shard; picklable by reference, equal machines make equal tables of the same rows."""

    def __call__(self, start: int, stop: int) -> pa.Table:
        """The table of manifest rows start..stop; calls task_progress.advance for each one that is done."""
        ...


@dataclass(frozen=True)
class Task:
    """One shard: rows start..stop, and the file to write."""

    work: Work
    start: int
    stop: int
    path: str

    def __str__(self) -> str:
        return f"{Path(self.path).name}, rows {self.start} to {self.stop - 1}"


@contextmanager
def held(folder: Path, label: str) -> Iterator[None]:
    """Lock a run's working folder; an equal run, such as another experiment's, waits and finds its shards."""
    say = partial(log.info, "%s: another process makes the same; waiting until it ends", label)
    with locks.held(_lock(folder), say):
        yield


def run(work: Work, rows: int, shard_size: int, folder: Path, workers: int, label: str) -> list[Path]:
    """Make the shards of `rows` rows in `folder`, those that are missing, and return the files of all.

    workers: processes here, where no cluster is named (goal.runtime.tasks.run). Raises UserError as the work
    does, or where the disk refuses; finished shards stay.
    """
    files.make_folder(folder)
    starts = range(0, rows, shard_size)
    shards = [folder / name(number) for number in range(len(starts))]
    missing, done = [], 0
    for start, path in zip(starts, shards, strict=True):
        stop = min(start + shard_size, rows)
        if _is_whole(path):
            done += stop - start
        else:
            missing.append(Task(work, start, stop, str(path.resolve())))
    if done:
        log.info("%s: %d of %d pictures were done before", label, done, rows)
    sizes = [task.stop - task.start for task in missing]
    modules = [type(work).__module__]
    try:
        if missing:
            tasks.run(
                make, missing, sizes, workers=workers, modules=modules, label=label, total=rows, done=done
            )
    finally:
        for draft in folder.glob(".shard-*.tmp"):  # of processes that were killed
            draft.unlink(missing_ok=True)
    return shards


def make(task: Task) -> None:
    """Make one shard; runs in whatever process the engine chose."""
    write(task.work(task.start, task.stop), Path(task.path))


def write(table: pa.Table, path: Path) -> None:
    """Write Parquet atomically, the same bytes for a table; raises UserError where the disk refuses."""
    with files.atomic(path) as draft:
        pq.write_table(table, draft, row_group_size=ROW_GROUP, compression="zstd")


def name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.parquet"


def with_notes(table: pa.Table, notes: dict) -> pa.Table:
    """The table with counts that its rows do not show, in its metadata (see `read_notes`)."""
    return table.replace_schema_metadata({NOTES: json.dumps(notes, sort_keys=True)})


def read_notes(path: Path) -> dict:
    """The notes of a shard, without reading its rows."""
    return json.loads(pq.read_schema(path).metadata[NOTES])


def publish(shards: list[Path], summary: dict, target: Path) -> None:
    """Make `target` the folder of these shards and summary.json; drops the shards of earlier, published runs.

    The shards are copied: what DVC does to its outs must not reach those that a restart reads.
    """
    draft = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in shards:
            shutil.copyfile(path, draft / path.name)
        files.write_json(summary, draft / "summary.json")
        files.replace_folder(draft, target)
    except OSError as error:
        raise files.unwritable(target, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def forget_others(folder: Path) -> None:
    """Mark a run's working folder as published and remove those of other published runs, if none holds it."""
    (folder / PUBLISHED).touch()
    split = folder.name.partition("-")[0]
    for other in folder.parent.glob(f"{split}-*"):
        if other != folder and (other / PUBLISHED).exists():
            # Timeout, an OSError: another process holds it.
            with suppress(OSError), FileLock(_lock(other), blocking=False):
                shutil.rmtree(other, ignore_errors=True)


def working_folder(stage: str, split: str, *inputs: str) -> Path:
    """Where a run's shards lie, named by its inputs and the stage's code: no other run takes them over."""
    key = hashlib.sha256(json.dumps([code.digest(f"stages/{stage}"), *inputs]).encode()).hexdigest()
    return paths.work_dir(stage) / f"{split}-{key[:20]}"


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _is_whole(path: Path) -> bool:
    try:
        return NOTES in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False
