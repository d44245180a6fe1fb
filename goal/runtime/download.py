"""Files from the network, as a whole or not at all: resumed after any break, checked, several at once."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import unquote, urlsplit

import requests
from tqdm import tqdm

from goal.errors import Interrupted, Unavailable, UserError
from goal.runtime import files

log = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes; of a chunk that breaks nothing is kept
TIMEOUT = (15, 60)  # seconds: to connect, between two bytes
# A server that says one of these may say otherwise in a moment.
BUSY = {408, 425, 429, 500, 502, 503, 504}
# How often a file whose bytes are not the expected ones is fetched anew.
WRONG_BYTES = 3
# Files that come at once.
PARALLEL = 4


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


@dataclass(frozen=True)
class Patience:
    """How long a broken transfer is tried again: `tries` in a row that bring the file no further than before.

    Before each but the first there is a `pause`, in seconds, that doubles up to `longest` while none does.
    """

    tries: int = 8
    pause: float = 1.0
    longest: float = 60.0


PATIENCE = Patience()


class _Again(Exception):
    """The transfer broke; what came is kept, or was dropped where it cannot be trusted."""


def fetch(remotes: list[Remote], folder: Path, label: str, patience: Patience | None = None) -> list[Path]:
    """The files in `folder`, those that are missing downloaded; `label` stands before the progress bar.

    A file that is there under its name is taken as it is if its size (where that is unknown, its sha256) is
    right: files had otherwise are put there, and nothing is downloaded twice. Processes that want the same
    file wait for the one that fetches it. patience: None for PATIENCE. Raises UserError where a file is
    refused, is not the expected one or does not fit the disk, and Unavailable where the network or a server
    fails; finished files and begun parts are kept.
    """
    files.make_folder(folder)
    missing = [remote for remote in remotes if not is_there(remote, folder)]
    if missing:
        stop = Event()
        with (
            tqdm(desc=label, total=0, unit="B", unit_scale=True, unit_divisor=1024) as bar,
            ThreadPoolExecutor(PARALLEL) as pool,
        ):
            transfers = [_Transfer(remote, folder, bar, patience or PATIENCE, stop) for remote in missing]
            files.check_space(folder, sum(transfer.to_come for transfer in transfers))
            jobs = [pool.submit(transfer.run) for transfer in transfers]
            try:
                for job in as_completed(jobs):
                    job.result()
            finally:
                # After a failure or Ctrl-C the others end where they are: what came is kept.
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
    """One file on its way: `part` grows, `note` beside it says of which version of the file it is."""

    def __init__(self, remote: Remote, folder: Path, bar: tqdm, patience: Patience, stop: Event) -> None:
        self.remote = remote
        self.path = folder / remote.file
        self.part = folder / f"{remote.file}.part"
        self.note = folder / f"{remote.file}.part.json"
        self.bar = bar
        self.patience = patience
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

    @property
    def to_come(self) -> int:
        """Bytes that are still missing, where the size is known."""
        return (self.remote.size or 0) - self.size

    def run(self) -> None:
        """Fetch the file, trying again as often as patience says; raises UserError."""
        try:
            with files.alone(self.path.with_name(f".{self.path.name}.lock"), self._wait):
                if not is_there(self.remote, self.path.parent):  # another process may have been faster
                    self._fetch()
        except OSError as error:
            raise files.unwritable(self.part, error) from error

    def _fetch(self) -> None:
        idle = wrong = 0
        farthest = self.size
        while True:
            try:
                self._receive()
            except (requests.RequestException, _Again) as error:
                # Not the bytes of this try: a server without ranges begins anew each time.
                idle = 0 if self.size > farthest else idle + 1
                farthest = max(farthest, self.size)
                if idle == self.patience.tries:
                    raise self._gone(error) from error
                self.stop.wait(min(self.patience.pause * 2**idle, self.patience.longest))
                continue
            fault = self._fault()
            if not fault:
                os.replace(self.part, self.path)
                self.note.unlink(missing_ok=True)
                return
            self._drop()
            wrong += 1
            if wrong == WRONG_BYTES:
                why = "the file there has changed, or something on the way alters it"
                raise UserError(f"{self.remote.url}: {fault}, {wrong} times; {why}")
            log.warning("%s: %s; fetching it again", self.remote.url, fault)

    def _wait(self) -> None:
        self.stop.wait(1)
        self._go_on()

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise Interrupted(f"{self.remote.url}: stopped at {self.size:,} bytes")

    def _gone(self, error: Exception) -> Unavailable:
        reason = " ".join(str(error).split())[:200]
        return Unavailable(
            f"{self.remote.url}: cannot be downloaded ({reason}); the same command goes on at {self.size:,}"
            f" bytes, or put the file there yourself: {self.path}"
        )

    def _receive(self) -> None:
        """Bring the part to its end, from where it stands if that is of the file that the server holds."""
        self._go_on()
        start, validator = self.size, self._validator()
        if start and start == self.remote.size:
            return  # killed between the last byte and the new name
        headers = {"Accept-Encoding": "identity"}
        # With neither a validator nor a checksum the halves might be of two files.
        if start and (validator or self.remote.sha256):
            headers["Range"] = f"bytes={start}-"
            if validator:
                headers["If-Range"] = validator
        with requests.get(self.remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return  # nothing is missing
                self._drop()
                raise _Again("the part here does not fit the file there")
            if response.status_code in BUSY:
                raise _Again(f"{response.status_code} {response.reason}")
            if not response.ok:
                raise UserError(f"{self.remote.url}: {response.status_code} {response.reason}")
            resumed = response.status_code == requests.codes.partial_content
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self._drop()
                raise _Again("the server sent another range than the one asked for")
            if not resumed:
                # All of it: the server knows no ranges, or it has another file by now.
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
                self._go_on()
                file.write(chunk)
                self.bar.update(len(chunk))
        if expected is not None and self.size < expected:
            raise _Again(f"the connection ended at {self.size:,} of {expected:,} bytes")

    def _validator(self) -> str:
        """What the server called this version of the file when the part was begun; empty: it did not say."""
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
