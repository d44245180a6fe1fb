"""The local journal of one tracked run: what is on disk before it is sent outlives a lost server and a kill.

A journal is a folder: `lines.jsonl`, one record a line, and `files/`, copies of artefacts. Its owner holds a
lock on it, which a killed process loses; a journal without an owner is a leftover that the next run delivers.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger("goal.tracking")

Record = dict[str, Any]


class Journal:
    """An owned journal. A disk that fails is stated once; the records then live in memory alone."""

    def __init__(self, folder: Path) -> None:
        """Take or make the journal in `folder`; BlockingIOError where a live process owns it."""
        self.folder = folder
        self._guard = threading.Lock()
        self._broken = False
        # Closed by the thread that sends; `owned` of another process may hold the lock for a moment.
        self._owner = FileLock(_lock(folder), timeout=0.5, thread_local=False)
        try:
            self._owner.acquire()
        except Timeout as error:
            raise BlockingIOError(f"{folder}: another process owns it") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "lines.jsonl").open("a+b")

    def read(self) -> list[Record]:
        """All whole records; the torn last line of a killed process is cut off."""
        self._lines.seek(0)
        text = self._lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        os.ftruncate(self._lines.fileno(), len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def write(self, record: Record) -> None:
        """Append one record; a kill of the process after this loses nothing."""
        line = json.dumps(record).encode() + b"\n"
        with self._guard:
            if self._broken or self._lines.closed:
                return
            try:
                self._lines.write(line)
                self._lines.flush()
            except OSError as error:
                self._state_broken(error)

    def keep(self, path: Path, folder: str) -> str | None:
        """Copy an artefact to files/<folder>/<its name>, and return that; None where it cannot be read.

        Nothing but the last part of `path` becomes a name, so that no artefact leaves its folder.
        """
        target = self.folder / "files" / folder / path.name
        try:
            if path.name in {"", ".", ".."} or not path.is_file():
                raise FileNotFoundError(2, "not a file")
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{path.name}.tmp")
            shutil.copyfile(path, draft)
            os.replace(draft, target)
        except OSError as error:
            log.warning("tracking: %s: not recorded: %s", path, error.strerror or error)
            return None
        return str(target.relative_to(self.folder))

    def remove(self) -> None:
        """Delete the journal: everything in it has been delivered."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Give the journal up; what it holds stays for the next run."""
        with self._guard:
            self._lines.close()
            self._owner.release()

    def _state_broken(self, error: OSError) -> None:
        self._broken = True
        log.warning("tracking: %s: %s; records are kept in memory only", self.folder, error.strerror)


def owned(folder: Path) -> bool:
    """Whether a live process holds this journal."""
    try:
        with FileLock(_lock(folder), blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _lock(folder: Path) -> Path:
    # Beside the folder, which goes when all is delivered.
    return folder.with_name(f".{folder.name}.lock")


def leftovers(root: Path) -> list[Path]:
    """Journals that killed or cut off runs left under `root`, oldest first."""
    found = []
    for lines in root.glob("*/lines.jsonl"):
        if not owned(lines.parent):
            # Another command may have delivered it just now.
            with contextlib.suppress(FileNotFoundError):
                found.append((lines.parent.stat().st_mtime, lines.parent))
    return [folder for _, folder in sorted(found)]


def place(root: Path) -> str:
    """A name for this folder of journals: nobody else's run of the same work is taken for one of here."""
    file = root / "place"
    with FileLock(root / "place.lock"):
        if not file.exists():
            draft = root / ".place.tmp"
            draft.write_text(secrets.token_hex(8), encoding="utf-8")
            os.replace(draft, file)
        return file.read_text(encoding="utf-8")
