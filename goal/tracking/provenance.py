"""Where a result comes from: git commit, digests that DVC keeps, packages, machine."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import yaml

from goal.errors import UserError

LOCK_FILE = Path("dvc.lock")
# The files that decide what a stage computes. params.yaml is recorded in full instead; the rest of the tree
# (documents, metrics that DVC writes) computes nothing.
CODE = ("goal", "dvc.yaml", "pyproject.toml", "requirements.lock")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Code:
    """The commit (UNKNOWN outside git) and the code files that differ from it (UNKNOWN where git fails)."""

    commit: str
    changed: tuple[str, ...]

    @property
    def uncommitted(self) -> str:
        """The changed files as a tag of a run or a fact of a version."""
        return ", ".join(self.changed) or "none"


@dataclass(frozen=True)
class Locked:
    """What dvc.lock says of one stage: md5 by path."""

    deps: Mapping[str, str]
    outs: Mapping[str, str]


def code(root: Path = Path()) -> Code:
    """The commit of the checkout at `root` and which of its CODE files are changed or new."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Code(UNKNOWN, ())
    # -z: names as they are, unquoted.
    options = ("--porcelain", "-z", "--untracked-files=all", "--no-renames")
    status = _git(root, "status", *options, "--", *CODE)
    if status is None:
        # Whether code is changed is not known, and must not pass for "none".
        return Code(commit.strip(), (UNKNOWN,))
    return Code(commit.strip(), tuple(sorted(record[3:] for record in status.split("\0") if record)))


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def lock(path: Path = LOCK_FILE) -> dict[str, Locked]:
    """The stages of dvc.lock; empty where there is no such file.

    Raises UserError where it is not a lock file.
    """
    try:
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        return {
            name: Locked(_md5s(stage.get("deps", [])), _md5s(stage.get("outs", [])))
            for name, stage in stages.items()
        }
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a lock file of DVC; `dvc repro` writes a new one") from error


def _md5s(entries: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in entries if "md5" in entry}


def upstream(stages: Mapping[str, Locked], paths: Iterable[Path]) -> dict[str, Locked]:
    """The stages that made `paths`, and those that made what they read, and so on; sorted by name."""
    found: dict[str, Locked] = {}
    todo = list(paths)
    while todo:
        path = todo.pop()
        for name, stage in stages.items():
            made = any(Path(out).is_relative_to(path) or path.is_relative_to(out) for out in stage.outs)
            if made and name not in found:
                found[name] = stage
                todo += [Path(dep) for dep in stage.deps]
    return dict(sorted(found.items()))


def md5(path: Path) -> str:
    """DVC's own digest of a file or a folder, as dvc.lock writes it (no .dvcignore inside is heeded)."""
    if not path.is_dir():
        return _md5(path)
    files = sorted((str(file.relative_to(path)), file) for file in path.rglob("*") if file.is_file())
    listing = [{"md5": _md5(file), "relpath": name} for name, file in files]
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; `dvc repro` makes it") from error


def fingerprint(value: Any) -> str:
    """sha256 of a nested value of plain types and Locked, the same whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=vars)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their joined keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def packages() -> dict[str, str]:
    """Versions of all installed packages, sorted by name."""
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


def hardware() -> dict[str, str]:
    """The machine: system, processor, cores, memory in GiB, accelerators."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "accelerators": ", ".join(gpus) or "none",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
