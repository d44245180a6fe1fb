"""Work that squares numbers, shard by shard, and leaves traces of its calls."""

import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from goal.errors import UserError
from goal.mining import shards
from goal.runtime import pool, task_progress

ROWS, SIZE = 23, 4


@dataclass(frozen=True)
class Squares:
    """Work whose calls leave a trace in `log`, and which `pause`s (seconds) at each row.

    limit: bytes of the largest file that the process may write; 0: any.
    """

    log: str
    pause: float = 0.0
    limit: int = 0

    def __call__(self, start: int, stop: int) -> pa.Table:
        if self.limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        Path(self.log, f"{start}-{os.getpid()}-{time.monotonic_ns()}").touch()
        for _ in range(start, stop):
            time.sleep(self.pause)
            task_progress.advance(1)
        rows = [{"row": row, "square": row * row} for row in range(start, stop)]
        return shards.with_notes(pa.Table.from_pylist(rows), {"rows": len(rows)})


@dataclass(frozen=True)
class Fails:
    """Work that fails on one shard: by a user's fault, a bug, or a worker that is killed or stopped, so many
    times."""

    log: str
    how: str
    times: int = 1000

    def __call__(self, start: int, stop: int) -> pa.Table:
        made = Squares(self.log)(start, stop)
        if start == 8 and len(list(Path(self.log).glob("8-*"))) <= self.times:
            if self.how in ("killed", "stopped"):
                os.kill(os.getpid(), signal.SIGKILL if self.how == "killed" else signal.SIGSTOP)
            if self.how == "bug":
                raise ZeroDivisionError("a bug")
            raise UserError("p8.png: its fault")
        return made


@dataclass(frozen=True)
class Numbered:
    """Work that takes down which of the workers did it, and of which one is killed once."""

    log: str

    def __call__(self, start: int, stop: int) -> pa.Table:
        made = Fails(self.log, "killed", times=1)(start, stop)
        Path(self.log, f"{start}-{os.getpid()}-by-{pool.number()}").touch()
        time.sleep(0.1)
        return made


def run(work, folder: Path, workers: int = 1) -> list[Path]:
    return shards.run(work, ROWS, SIZE, folder, workers, "squares")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def calls(log: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[0]) for path in log.iterdir())
