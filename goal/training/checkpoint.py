"""The state of a training on disk: complete, atomic, checked when read, refused when of another run.

A run's folder holds `step-<number>/` with `state.safetensors` (tensors) and `state.json` (values, what
the run is, the tensors' sha256). Such a folder is complete: it was written under another name, synced and
renamed.
"""

import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from goal.errors import UserError
from goal.runtime import files, locks

log = logging.getLogger(__name__)

TENSORS = "state.safetensors"
VALUES = "state.json"
DIGITS = 16
_DRAFT = ".draft-"


class Damaged(Exception):
    """A checkpoint that cannot be read whole."""


@dataclass(frozen=True)
class Saved:
    """A state as it was after `step` optimizer steps; `values` is what JSON can say."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def digest(identity: Mapping[str, Any]) -> str:
    """Name of a run: short sha256 of what its result hangs on."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, each as `name: other -> mine`."""
    names = sorted(set(mine) | set(other))
    return [
        f"{name}: {_short(other.get(name))} -> {_short(mine.get(name))}"
        for name in names
        if mine.get(name) != other.get(name)
    ]


class Checkpoints:
    """The checkpoints of one run, below `root/<digest of identity>`; one process at a time."""

    def __init__(self, root: Path, identity: Mapping[str, Any], keep: int) -> None:
        self.folder = root / digest(identity)
        self._identity = dict(identity)
        self._keep = keep

    @contextmanager
    def held(self) -> Iterator[None]:
        """Own the folder; UserError where another living process trains the same."""

        def refuse() -> None:
            raise UserError(f"{self.folder}: another process trains this right now; wait for it")

        with locks.held(self.folder / "lock", refuse):
            for draft in self.folder.glob(f"{_DRAFT}*"):
                remove(draft)
            self._tell_of_others()
            yield

    def save(self, saved: Saved) -> None:
        """Write a checkpoint, then drop all but the last `keep`; UserError where the disk cannot take it.

        Whatever happens, the checkpoints before it stay until it is whole.
        """
        draft = self.folder / f"{_DRAFT}{saved.step}"
        final = self.folder / f"step-{saved.step:08d}"
        if self._is_whole(final):
            # Stopped before the first step after a restart.
            return
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            save_file(saved.tensors, draft / TENSORS)
            head = {"identity": self._identity, "step": saved.step, "sha256": files.digest(draft / TENSORS)}
            text = json.dumps(head | {"values": saved.values}, indent=1)
            (draft / VALUES).write_text(text, encoding="utf-8")
            for path in (draft / TENSORS, draft / VALUES, draft):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(draft, final)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            reason = " ".join(str(error).split())
            raise UserError(
                f"{final}: cannot be saved: {reason}; the checkpoint before it is kept"
            ) from error
        for old in self._found()[self._keep :]:
            remove(old)

    def restore(self) -> Saved | None:
        """The last whole checkpoint, or None; damaged ones are passed over, saying so.

        Raises UserError where a checkpoint is of another run, naming what differs.
        """
        for folder in self._found():
            try:
                return self._read(folder)
            except Damaged as damage:
                log.warning("%s: damaged (%s); going back to the one before", folder, damage)
        return None

    def values(self) -> list[dict[str, Any]]:
        """The values of all checkpoints that are kept, the last one's first."""
        found = []
        for folder in self._found():
            with suppress(Damaged):
                found.append(_head(folder)["values"])
        return found

    def clear(self) -> None:
        """Remove the run's folder: its result is written."""
        remove(self.folder)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _is_whole(self, folder: Path) -> bool:
        try:
            self._read(folder)
        except Damaged:
            return False
        return True

    def _read(self, folder: Path) -> Saved:
        head = _head(folder)
        other = differences(self._identity, head["identity"])
        if other:
            raise UserError(f"{folder}: of another run ({'; '.join(other)}); remove it or restore those")
        file = folder / TENSORS
        try:
            if files.digest(file) != head["sha256"]:
                raise Damaged(f"{TENSORS} is not what was written")
            return Saved(head["step"], load_file(file), head["values"])
        except (OSError, SafetensorError, UserError) as error:
            raise Damaged(" ".join(str(error).split())) from error

    def _tell_of_others(self) -> None:
        # Not Path.glob, which raises where another training removes its folder at that moment.
        for name in sorted(glob.glob("*/step-*", root_dir=self.folder.parent), reverse=True):
            folder = self.folder.parent / name
            if folder.parent == self.folder:
                continue
            try:
                other = differences(self._identity, _head(folder)["identity"])
            except Damaged:
                continue
            log.info("%s: unfinished, of another run (%s); left alone", folder, "; ".join(other))


def remove(path: Path) -> None:
    """Remove a file or folder that nobody needs; a disk that refuses is told of, and ends no training."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        log.warning("%s: cannot be removed: %s; remove it by hand", path, error.strerror)


def _head(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"{VALUES}: {' '.join(str(error).split())}") from error
    if not isinstance(head, dict) or {"identity", "step", "sha256", "values"} - set(head):
        raise Damaged(f"{VALUES} lacks what a checkpoint says")
    return head


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
