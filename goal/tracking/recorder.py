"""Brings the records of a run to the tracking server, from a thread of its own: the step never waits for it.

Each record goes to the journal first. Sending is repeatable: a metric is sent once a step and a key, whether
the first try was cut off, the process was killed, or a resumed training goes through the same steps again.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from goal.tracking.journal import Journal, Record, leftovers

log = logging.getLogger("goal.tracking")

# Seconds. A server that is down is tried again after each of these, then after the last one.
RETRIES = (2.0, 5.0, 15.0, 60.0)
BATCH = 500
FINISHED, KILLED, FAILED = "FINISHED", "KILLED", "FAILED"
TRAINING, EVALUATION = "training", "evaluation"
Point = tuple[str, float, int, int]


class Unreachable(Exception):
    """The server did not answer, or not in time: the same call may work later."""


class Barred(Unreachable):
    """The same call will work once somebody has mended a password or a disk; until then it is kept."""


class Refused(Exception):
    """The server will never take this record."""


class Store(Protocol):
    """What the recorder needs of a tracking server; calls end in time and raise Unreachable or Refused.

    `attach` returns the run, made where there is none, and whether it is finished; `last` each metric's value
    and step at its last step.
    """

    def attach(self, header: Record) -> tuple[str, bool]: ...
    def create(self, header: Record) -> str: ...
    def describe(self, run: str, header: Record) -> None: ...
    def last(self, run: str) -> dict[str, tuple[float, int]]: ...
    def tag(self, run: str, key: str) -> str | None: ...
    def log_points(self, run: str, points: list[Point]) -> None: ...
    def set_tags(self, run: str, tags: dict[str, str]) -> None: ...
    def log_file(self, run: str, path: Path, folder: str) -> None: ...
    def end(self, run: str, status: str, time_ms: int) -> None: ...
    def watch(self, run: str) -> None: ...
    def unwatch(self) -> None: ...


class Delivery:
    """The records of one journal on their way to one run."""

    def __init__(self, journal: Journal, header: Record, records: list[Record]) -> None:
        self.journal = journal
        self.header = header
        self.records = records
        self.run: str | None = None
        self._finished = False
        self._last: dict[str, tuple[float, int]] | None = None

    def send(self, store: Store) -> None:
        """Send what there is; whatever could not be sent stays in `records`."""
        try:
            if self.run is None:
                self._attach(store)
            if self._finished and self.header["kind"] == TRAINING:
                self._compare(store)
            else:
                self._send(store)
        except Unreachable:
            # The server may have taken what it did not confirm.
            self._last = None
            raise

    @property
    def live(self) -> bool:
        """Whether a training goes on in this run."""
        return self.run is not None and self.header["kind"] == TRAINING and not self._finished

    def _attach(self, store: Store) -> None:
        run, self._finished = store.attach(self.header)
        if not self._finished:
            store.describe(run, self.header)
        self.run = run

    def _compare(self, store: Store) -> None:
        """The same training was done again: nothing new, unless its result differs from the finished one."""
        tags = {key: value for record in self.records for key, value in record.get("tags", {}).items()}
        if not any("end" in record for record in self.records):
            return
        if tags.get("goal.model") == store.tag(self.run or "", "goal.model"):
            log.info("tracking: the same result as run %s; no new run", self.run)
            self.records.clear()
            return
        self.run, self._finished = store.create(self.header), False
        store.describe(self.run, self.header)
        self._send(store)

    def _send(self, store: Store) -> None:
        while self.records:
            count = 1
            if "metrics" in self.records[0]:
                while count < min(len(self.records), BATCH) and "metrics" in self.records[count]:
                    count += 1
            try:
                self._send_some(store, self.records[:count])
            except Refused as error:
                log.warning("tracking: not recorded: %s", error)
            del self.records[:count]

    def _send_some(self, store: Store, records: list[Record]) -> None:
        run, first = self.run or "", records[0]
        if "metrics" in first:
            self._send_points(store, run, records)
        elif "tags" in first:
            store.set_tags(run, first["tags"])
        elif "file" in first:
            store.log_file(run, self.journal.folder / first["file"], first["folder"])
        elif "end" in first and not self._finished:
            store.end(run, first["end"], first["time"])

    def _send_points(self, store: Store, run: str, records: list[Record]) -> None:
        if self._last is None:
            self._last = store.last(run)
        last = dict(self._last)
        points: list[Point] = []
        for record in records:
            for key, value in record["metrics"].items():
                known, step = last.get(key, (None, -1))
                if record["step"] is None:
                    # A measurement of the finished model: again only where it differs.
                    if value == known:
                        continue
                    at = step + 1
                elif record["step"] > step:
                    at = record["step"]
                else:
                    continue
                points.append((key, value, at, record["time"]))
                last[key] = (value, at)
        for start in range(0, len(points), BATCH):
            store.log_points(run, points[start : start + BATCH])
        self._last = last


class Recorder:
    """The tracker of one run: a journal, a queue and the thread that sends. Nothing raises or waits long."""

    def __init__(self, folder: Path, header: Record, connect: Callable[[], Store], address: str) -> None:
        """Own the journal in `folder`; BlockingIOError where another process does."""
        self._journal = Journal(folder)
        old = [record for record in self._journal.read() if "run" not in record and "end" not in record]
        self._connect, self._address = connect, address
        self._delivery = Delivery(self._journal, header, old)
        self._queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._problem: str | None = None
        self._ended = False  # whether the record of the run's end was taken
        self._journal.write({"run": header})
        self._thread = threading.Thread(target=self._work, name="goal-tracking", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: dict[str, float], step: int | None) -> None:
        """Values of one optimizer step; step None: a measurement of the finished model."""
        self._put(
            {"metrics": {key: float(value) for key, value in metrics.items()}, "step": step, "time": _now()}
        )

    def set_tags(self, tags: dict[str, str]) -> None:
        """Facts about the run; a later value replaces an earlier one."""
        self._put({"tags": {key: str(value) for key, value in tags.items()}})

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """A small file of the run, as it is now; it lands under `folder` by the last part of its name."""
        kept = self._journal.keep(Path(path), folder)
        if kept is not None:
            self._put({"file": kept, "folder": folder})

    def finish(self, status: str, patience: float) -> None:
        """End the run, wait up to `patience` seconds for the rest to be sent, and state what was not."""
        self._put({"end": status, "time": _now()})
        self._thread.join(patience)
        left = len(self._delivery.records) + self._queue.qsize()
        if not left and not self._thread.is_alive():
            return
        log.warning(
            "tracking: %s: %s; %d records are kept in %s and are delivered by the next run",
            self._address,
            self._problem or "not sent in time",
            left,
            self._journal.folder,
        )

    def _put(self, record: Record) -> None:
        self._journal.write(record)
        self._queue.put(record)

    def _work(self) -> None:
        try:
            self._deliver()
        finally:
            # What comes after a refusal is in the journal too.
            while not self._ended:
                self._take()
            # Here, not in `finish`, which may have stopped waiting: nobody else would give the journal up.
            if self._delivery.records:
                self._journal.close()
            else:
                self._journal.remove()

    def _deliver(self) -> None:
        store, tries, retry_at, last_round = None, 0, 0.0, False
        while not last_round:
            self._take()
            last_round = self._ended
            if not last_round and time.monotonic() < retry_at:
                continue
            try:
                store = store or self._connected()
                if last_round:
                    store.unwatch()
                self._delivery.send(store)
                if self._delivery.live and not last_round:
                    store.watch(self._delivery.run or "")
                self._state(None)
                tries = 0
            except Unreachable as error:
                self._state(str(error))
                retry_at = time.monotonic() + RETRIES[min(tries, len(RETRIES) - 1)]
                tries += 1
            except Refused as error:
                self._state(str(error))
                return

    def _connected(self) -> Store:
        store = self._connect()
        deliver_leftovers(self._journal.folder.parent, store)
        return store

    def _take(self) -> None:
        """Move what is queued to the delivery, waiting a second for a first record."""
        try:
            record = self._queue.get(timeout=1.0)
            while True:
                self._delivery.records.append(record)
                self._ended = self._ended or "end" in record
                record = self._queue.get_nowait()
        except queue.Empty:
            return

    def _state(self, problem: str | None) -> None:
        if problem and not self._problem:
            log.warning("tracking: %s: %s; the work goes on, the records are kept", self._address, problem)
        if self._problem and not problem:
            log.info("tracking: %s answers again; nothing was lost", self._address)
        self._problem = problem


def deliver_leftovers(root: Path, store: Store) -> None:
    """Send what killed or cut off runs left behind; one that did not end is ended as killed."""
    for folder in leftovers(root):
        try:
            journal = Journal(folder)
        except BlockingIOError:
            continue
        try:
            records = journal.read()
            headers = [record["run"] for record in records if "run" in record]
            records = [record for record in records if "run" not in record]
            if headers:
                ends = [record for record in records if "end" in record]
                rest = [record for record in records if "end" not in record]
                rest.append(ends[-1] if ends else {"end": KILLED, "time": _now()})
                Delivery(journal, headers[-1], rest).send(store)
            journal.remove()
        except Refused as error:
            log.warning("tracking: %s: given up: %s", folder.name, error)
            journal.remove()
        finally:
            journal.close()


def _now() -> int:
    return time.time_ns() // 1_000_000
