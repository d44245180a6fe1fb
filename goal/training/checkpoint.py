"""Checkpoints of a training on disk: written atomically, verified when read, refused for another run.

A run's folder holds `step-<number>/` with `state.safetensors` (tensors) and `state.json` (values, the run's
identity, the sha256 of the tensors). A checkpoint is written under another name, synced and renamed, so it is
complete. `best-<step>.safetensors` beside them holds the weights of the best validation so far.
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
from goal.runtime import files, locks, tensorfiles

log = logging.getLogger(__name__)

TENSORS = "state.safetensors"
VALUES = "state.json"
DIGITS = 16
_DRAFT = ".draft-"


class Damaged(Exception):
    """A checkpoint that is incomplete or does not match its sha256."""


@dataclass(frozen=True)
class State:
    """The state of a training after `step` optimizer steps; `values` can be written as JSON."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def digest(identity: Mapping[str, Any]) -> str:
    """Short sha256 of a run's identity (everything that its result depends on): names the run's folder."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The entries in which two identities differ, each as `name: other -> mine`."""
    names = sorted(set(mine) | set(other))
    return [
        f"{name}: {_short(other.get(name))} -> {_short(mine.get(name))}"
        for name in names
        if mine.get(name) != other.get(name)
    ]


class Checkpoints:
    """The checkpoints of one run, in `root/<digest of identity>`; used by one process at a time."""

    def __init__(self, root: Path, identity: Mapping[str, Any], keep: int) -> None:
        self.folder = root / digest(identity)
        self._identity = dict(identity)
        self._keep = keep

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; UserError where another process trains the same run."""

        def refuse() -> None:
            raise UserError(f"{self.folder}: another process trains this right now; wait for it")

        with locks.held(self.folder / "lock", refuse):
            for draft in self.folder.glob(f"{_DRAFT}*"):
                remove(draft)
            self._log_other_runs()
            yield

    def save(self, state: State) -> None:
        """Write a checkpoint, then remove all but the last `keep`; UserError where the disk is full or fails.

        The earlier checkpoints stay until this one is complete.
        """
        draft = self.folder / f"{_DRAFT}{state.step}"
        final = self.folder / f"step-{state.step:08d}"
        with suppress(Damaged):
            # A training that is stopped before its first step after a resume is already saved.
            self._read(final)
            return
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            save_file(state.tensors, draft / TENSORS)
            head = {"identity": self._identity, "step": state.step, "sha256": files.digest(draft / TENSORS)}
            text = json.dumps(head | {"values": state.values}, indent=1)
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
        for old in self._newest_first()[self._keep :]:
            remove(old)

    def restore(self) -> State | None:
        """The state of the last complete checkpoint, or None; damaged ones are skipped with a warning.

        Raises UserError where a checkpoint is of another run, naming what differs.
        """
        for folder in self._newest_first():
            try:
                return self._read(folder)
            except Damaged as damage:
                log.warning("%s: damaged (%s); using the checkpoint before it", folder, damage)
        return None

    def save_best(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Write the weights of the best validation so far, which is that of `step`, and remove older ones.

        Keeps those that a checkpoint refers to, because the training may resume from it.
        """
        tensorfiles.write(self._best_file(step), weights, {})
        needed = {self._best_file(step)}
        for folder in self._newest_first():
            with suppress(Damaged):
                needed.add(self._best_file(_head(folder)["values"]["best_step"]))
        for file in set(self.folder.glob("best-*.safetensors")) - needed:
            remove(file)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The weights that `save_best` wrote for `step`."""
        return tensorfiles.read(self._best_file(step))[0]

    def clear(self) -> None:
        """Remove the run's folder; called once its results are written."""
        remove(self.folder)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _best_file(self, step: int | None) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def _read(self, folder: Path) -> State:
        head = _head(folder)
        changes = differences(self._identity, head["identity"])
        if changes:
            raise UserError(f"{folder}: of another run ({'; '.join(changes)}); remove it or undo the changes")
        file = folder / TENSORS
        try:
            if files.digest(file) != head["sha256"]:
                raise Damaged(f"{TENSORS} does not match its sha256")
            return State(head["step"], load_file(file), head["values"])
        except (OSError, SafetensorError, UserError) as error:
            raise Damaged(" ".join(str(error).split())) from error

    def _log_other_runs(self) -> None:
        # Not Path.glob, which raises where another training removes its folder meanwhile.
        for name in sorted(glob.glob("*/step-*", root_dir=self.folder.parent), reverse=True):
            folder = self.folder.parent / name
            if folder.parent != self.folder:
                with suppress(Damaged):
                    changes = "; ".join(differences(self._identity, _head(folder)["identity"]))
                    log.info("%s: unfinished, of another run (%s); left alone", folder, changes)


def remove(path: Path) -> None:
    """Remove a file or folder; where that fails, log a warning and go on."""
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
        raise Damaged(f"{VALUES} lacks fields")
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
