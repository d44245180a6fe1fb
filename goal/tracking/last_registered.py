"""What was registered last and in which state of the store: the same again need not load MLflow."""

import json
from collections.abc import Mapping
from pathlib import Path

from goal.config import paths
from goal.runtime import files
from goal.tracking import provenance
from goal.tracking.store import SQLITE


def holds(uri: str, name: str, tags: Mapping[str, str]) -> bool:
    """Whether exactly this was noted last, and nobody has written to the store since.

    Of a server, whose state only a question tells, never.
    """
    try:
        return uri.startswith(SQLITE) and _noted().read_text(encoding="utf-8") == _state(uri, name, tags)
    except OSError:
        return False


def note(uri: str, name: str, tags: Mapping[str, str]) -> None:
    """Keep that the store has a version of `name` with these tags."""
    # An address may have options behind the file's name: then nothing is noted.
    if uri.startswith(SQLITE) and Path(uri.removeprefix(SQLITE)).exists():
        files.write_text(_noted(), _state(uri, name, tags))


def _noted() -> Path:
    return paths.work_dir("registered") / "last.json"


def _state(uri: str, name: str, tags: Mapping[str, str]) -> str:
    file = Path(uri.removeprefix(SQLITE)).stat()
    store = [uri, file.st_ino, file.st_size, file.st_mtime_ns]
    return json.dumps({"store": store, "version": provenance.fingerprint([name, dict(tags)])})
