"""The record of a run as files: a tracking server that is away, or a kill, loses nothing of it.

A record is a folder in work/runs/ (not in metrics/: DVC must see neither ids nor times):

    run.json       id, experiment, name, parameters, tags, data set, start, end, status (None: goes on)
    metrics.jsonl  one line per call of log_metrics
    artifacts/     copies of small files

`goal.tracking.sync` sends records. A finished one is then removed; that of a killed or failed training stays,
since the same training may go on. <work>.model holds the digest of the model that a training led to.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from goal.config import paths
from goal.errors import UserError
from goal.runtime import files, locks

log = logging.getLogger("goal.tracking")

FINISHED, KILLED, FAILED = "FINISHED", "KILLED", "FAILED"
BATCH = 500
Run = dict[str, Any]  # what run.json holds
Point = tuple[str, float, int, int]  # name, value, time in ms, step


class Busy(Exception):
    """Another process writes this record."""


class Record:
    """The folder of one run, and the tracker of a training: log_metrics raises nothing."""

    def __init__(self, folder: Path, run: Run | None = None) -> None:
        """The record in `folder` (FileNotFoundError where there is none), or a new one of `run`."""
        self.folder, self.artifacts, self._metrics = folder, folder / "artifacts", folder / "metrics.jsonl"
        self.run: Run = run or json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.sent: int = self.run["sent_bytes"]  # of metrics.jsonl, as far as is known
        self._model = root() / f"{self.run['work']}.model"
        self._last: dict[str, int] = {}
        self._disk_failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the values of a step; those that a resumed training logs again are left out."""
        new = {name: float(value) for name, value in metrics.items() if step > self._last.get(name, -1)}
        self._last |= dict.fromkeys(new, step)
        try:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "time": now(), "metrics": new}) + "\n")
        except OSError as error:
            if not self._disk_failed:
                log.warning("tracking: %s: %s; some values are not recorded", self._metrics, error.strerror)
            self._disk_failed = True

    def copy(self, artifacts: Iterable[tuple[Path, str]]) -> None:
        """Copy each file to artifacts/<folder>/<its name>; one that cannot be read is reported."""
        for path, folder in artifacts:
            try:
                if not path.is_file():
                    raise FileNotFoundError(2, "not a file")
                (self.artifacts / folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.artifacts / folder / path.name)
            except OSError as error:
                log.warning("tracking: %s: not recorded: %s", path, error.strerror)

    def save(self, **changes: Any) -> None:
        """Write run.json with `changes`; raises UserError where the disk refuses."""
        self.run |= changes | {"sent_bytes": self.sent}
        files.write_json(self.run, self.folder / "run.json")

    def resume(self) -> None:
        """Go on after a kill, which may have cut a line off."""
        with suppress(FileNotFoundError):
            os.truncate(self._metrics, self._metrics.read_bytes().rfind(b"\n") + 1)
        self._last = {name: step for points, _ in self.points() for name, _, _, step in points}
        self.save(status=None, sent=False)

    def end(self, status: str, tags: Mapping[str, str] = {}) -> None:
        """Save the final status and tags; the same training with the same result leaves no second record."""
        model = tags.get("goal.model")
        if model and model == self.repeated:
            log.info("tracking: the same result as before; no new run")
            self.remove()
            return
        self.save(status=status, ended=now(), final_tags=dict(tags))
        if model:
            files.write_text(self._model, model)

    def remove(self) -> None:
        """Remove the folder: nothing in it is to be sent."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def repeated(self) -> str | None:
        """The digest of the model that this training led to before, where it is done again."""
        return self._model.read_text(encoding="utf-8") if self._model.exists() else None

    def points(self, start: int = 0) -> Iterator[tuple[list[Point], int]]:
        """Batches of values from byte `start` of metrics.jsonl on, each with the byte at which it ends."""
        points, end = [], start
        with suppress(FileNotFoundError), self._metrics.open("rb") as file:
            file.seek(start)
            # The last line may be half written.
            for line in (line for line in file if line.endswith(b"\n")):
                entry, end = json.loads(line), end + len(line)
                time_step = entry["time"], entry["step"]
                points += [(name, value, *time_step) for name, value in entry["metrics"].items()]
                if len(points) >= BATCH:
                    yield points, end
                    points = []
        if points:
            yield points, end


def root() -> Path:
    """The folder of all records."""
    return paths.work_dir("runs")


def lock(work: str) -> AbstractContextManager[None]:
    """Hold the record of a training; raises Busy where a live process does."""

    def busy() -> None:
        raise Busy

    return locks.held(root() / f"{work}.lock", busy)


def of_training(run: Run) -> Record:
    """The record of a training whose lock is held: the unfinished one of the same work, else a new one."""
    folder = root() / run["work"]
    with suppress(FileNotFoundError):
        record = Record(folder)
        if record.run["status"] != FINISHED:
            record.resume()
            return record
        # Done, not sent yet, and done again.
        os.rename(folder, f"{folder}-{record.run['id']}")
    record = Record(folder, run)
    record.save()
    return record


def write(run: Run, artifacts: Iterable[tuple[Path, str]]) -> None:
    """Write the record of something that is done; run.json, its last file, makes it count."""
    record = Record(root() / f"{run['work']}-{run['id']}", run)
    record.copy(artifacts)
    record.save()


def pending() -> list[Record]:
    """The records that are not sent, oldest first, without those of live trainings.

    One that cannot be ended, on a full disk or in a folder of another user, is reported and left out.
    """
    found = []
    for file in root().glob("*/run.json"):
        # Sent and removed by another process, or of a live training.
        with suppress(FileNotFoundError, Busy), _reporting(file.parent):
            record = Record(file.parent)
            if record.run["status"] is None:
                with lock(record.run["work"]):
                    record.end(KILLED)
            # A training that is done again shows only at its end whether it is a run of its own.
            if not record.run["sent"] and (record.run["status"] == FINISHED or not record.repeated):
                found.append(record)
    return sorted(found, key=lambda record: record.run["started"])


@contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        log.warning("tracking: %s: not sent: %s", folder, error)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
