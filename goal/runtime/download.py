"""Files from the network: several at once, resumed where the connection broke, checked, then renamed."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from goal.errors import Interrupted, Unavailable, UserError
from goal.runtime import files

log = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes; a chunk that does not arrive whole is lost
TIMEOUT = (15, 60)  # seconds: to connect, between two bytes
BUSY = {408, 425, 429, 500, 502, 503, 504}  # statuses that are worth a retry
# Tries in a row without progress of the file before a broken transfer is given up. urllib3's Retry does not
# resume in the middle of a file, and would sleep on when another file fails or the user stops the command.
TRIES = 8
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a retry: doubled with each one that brings no progress
WRONG_BYTES = 3  # downloads of a file whose size or checksum is wrong
PARALLEL = 4  # files at once


@dataclass(frozen=True)
class Remote:
    """A file somewhere: its address, and its size in bytes and sha256 where they are known.

    sha256: hex, all of it or its first digits; name: of the file here; empty: the address's last part.
    """

    url: str
    size: int | None = None
    sha256: str = ""
    name: str = ""

    @property
    def file(self) -> str:
        """The file's name here."""
        return self.name or unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]


class _Broken(Exception):
    """The transfer broke; what arrived is kept, or was deleted where it cannot be trusted."""


def fetch(remotes: list[Remote], folder: Path, label: str) -> list[Path]:
    """Download those of the files that are missing in `folder`; returns the paths of all.

    A file that is there under its name is used if its size (where that is unknown, its sha256) is right, so
    that users can put files there by hand. Processes that want the same file wait for the one that downloads
    it. label: of the progress bar. Raises UserError where a file is refused, is not the expected one or does
    not fit the disk, and Unavailable where the network or a server fails; finished files and parts are kept.
    """
    files.make_folder(folder)
    missing = [remote for remote in remotes if not is_there(remote, folder)]
    if missing:
        stop = Event()
        with (
            tqdm(desc=label, total=0, unit="B", unit_scale=True, unit_divisor=1024) as bar,
            ThreadPoolExecutor(PARALLEL) as pool,
        ):
            transfers = [_Transfer(remote, folder, bar, stop) for remote in missing]
            files.check_space(folder, bar.total - sum(transfer.size for transfer in transfers))
            jobs = [pool.submit(transfer.run) for transfer in transfers]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                # After a failure or Ctrl-C the other transfers end too; their parts are kept.
                stop.set()
                pool.shutdown(cancel_futures=True)
    return [folder / remote.file for remote in remotes]


def is_there(remote: Remote, folder: Path) -> bool:
    """Whether the file lies in `folder`; raises UserError where one of that name is another file."""
    path = folder / remote.file
    if not path.exists():
        return False
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        raise UserError(f"{path}: {size:,} bytes, expected {remote.size:,}; delete it to have it fetched")
    if remote.size is None and remote.sha256 and not files.digest(path).startswith(remote.sha256):
        raise UserError(f"{path}: not the expected file (sha256); delete it to have it fetched")
    return True


class _Transfer:
    """The download of one file: `part` grows; `note` says which version of the file it is a part of."""

    def __init__(self, remote: Remote, folder: Path, bar: tqdm, stop: Event) -> None:
        self.remote = remote
        self.path = folder / remote.file
        self.part = folder / f"{remote.file}.part"
        self.note = folder / f"{remote.file}.part.json"
        self.bar = bar
        self.stop = stop
        bar.total += remote.size or 0
        bar.update(self.size)

    @property
    def size(self) -> int:
        """Bytes of the part."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:  # not begun, or just finished by another process
            return 0

    def run(self) -> None:
        """Download the file; raises UserError, and Interrupted once `stop` is set."""
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            with lock.acquire(cancel_check=self.stop.is_set):
                if not is_there(self.remote, self.path.parent):  # another process may have been faster
                    self._fetch()
        except Timeout:
            self._check_stop()
        except OSError as error:
            raise files.unwritable(self.part, error) from error

    def _fetch(self) -> None:
        for _ in range(WRONG_BYTES):
            self._complete()
            fault = self._fault()
            if not fault:
                os.replace(self.part, self.path)
                self.note.unlink(missing_ok=True)
                return
            log.warning("%s: %s; deleted", self.remote.url, fault)
            self._drop()
        why = "the file there has changed, or something on the way alters it"
        raise UserError(f"{self.remote.url}: {fault}, {WRONG_BYTES} times; {why}")

    def _complete(self) -> None:
        """Receive the rest of the part, with retries."""
        idle, farthest = 0, self.size
        while True:
            try:
                self._receive()
                return
            except (requests.RequestException, _Broken) as error:
                # Progress of the file, not of this try: a server without ranges sends all of it each time.
                idle = 0 if self.size > farthest else idle + 1
                farthest = max(farthest, self.size)
                if idle == TRIES:
                    reason = " ".join(str(error).split())[:200]
                    raise Unavailable(
                        f"{self.remote.url}: cannot be downloaded ({reason}); the same command goes on at "
                        f"{self.size:,} bytes, or put the file there yourself: {self.path}"
                    ) from error
                self.stop.wait(min(PAUSE * 2**idle, LONGEST_PAUSE))

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Interrupted(f"{self.remote.url}: stopped at {self.size:,} bytes")

    def _receive(self) -> None:
        """Receive from the end of the part, or from the start where the part may be of another version."""
        self._check_stop()
        start, validator = self.size, self._validator()
        if start and start == self.remote.size:
            return  # killed between the last byte and the new name
        headers = {"Accept-Encoding": "identity"}
        # Without a validator or a checksum the two halves might be of different versions.
        if start and (validator or self.remote.sha256):
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        with requests.get(self.remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return  # nothing is missing
                self._drop()
                raise _Broken("the part here does not fit the file there")
            if response.status_code in BUSY:
                raise _Broken(f"{response.status_code} {response.reason}")
            if not response.ok:
                raise UserError(f"{self.remote.url}: {response.status_code} {response.reason}")
            resumed = response.status_code == requests.codes.partial_content
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self._drop()
                raise _Broken("the server sent another range than the one asked for")
            if not resumed:
                # The whole file: the server does not support ranges, or its file has changed.
                self._drop()
            self._write(response)

    def _write(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length", "")
        expected = self.size + int(length) if length.isdigit() else None
        if self.remote.size is None and expected is not None:
            files.check_space(self.path.parent, expected - self.size)
            if not self.size:
                self.bar.total += expected
        if not self.size:
            tag = response.headers.get("ETag", "")
            # A weak tag does not promise the same bytes.
            validator = response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
            self.note.write_text(json.dumps({"url": self.remote.url, "validator": validator}))
        with self.part.open("ab") as file:
            for chunk in response.iter_content(CHUNK):
                self._check_stop()
                file.write(chunk)
                self.bar.update(len(chunk))
        if expected is not None and self.size < expected:
            raise _Broken(f"the connection ended at {self.size:,} of {expected:,} bytes")

    def _validator(self) -> str:
        """The ETag or date that the server gave with the part's first bytes; empty: none."""
        try:
            note = json.loads(self.note.read_text())
        except (FileNotFoundError, ValueError):
            return ""
        return note["validator"] if note["url"] == self.remote.url else ""

    def _drop(self) -> None:
        self.bar.update(-self.size)
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _fault(self) -> str:
        """What is wrong with the finished part; empty: nothing."""
        if self.remote.size is not None and self.size != self.remote.size:
            return f"{self.size:,} bytes instead of {self.remote.size:,}"
        found = files.digest(self.part) if self.remote.sha256 else ""
        if not found.startswith(self.remote.sha256):
            return f"sha256 {found[:12]}... instead of {self.remote.sha256[:12]}..."
        return ""
