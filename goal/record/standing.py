"""What was registered last and in which state of the store: the same again need not load MLflow."""

import json
from collections.abc import Mapping
from pathlib import Path

from goal import files, layout
from goal.record import provenance


def holds(store: Path | None, name: str, tags: Mapping[str, str]) -> bool:
    """Whether exactly this was noted last, and nobody has written to the store since.

    store: the file that is the registry. None for a server, whose state only a question tells.
    """
    try:
        return store is not None and _noted().read_text(encoding="utf-8") == _state(store, name, tags)
    except OSError:
        return False


def note(store: Path | None, name: str, tags: Mapping[str, str]) -> None:
    """Keep that the registry `store` has a version of `name` with these tags."""
    if store is not None:
        files.write_text(_noted(), _state(store, name, tags))


def _noted() -> Path:
    return layout.work_dir("registered") / "last.json"


def _state(store: Path, name: str, tags: Mapping[str, str]) -> str:
    file = store.stat()
    return json.dumps(
        {
            "store": [str(store), file.st_ino, file.st_size, file.st_mtime_ns],
            "version": provenance.fingerprint([name, dict(tags)]),
        }
    )
