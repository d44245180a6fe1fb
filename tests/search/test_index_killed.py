"""`goal index` that is killed: what was embedded is kept, and the same command goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from goal.search import store
from tests import tiny
from tests.search import photos
from tests.search.photos import MODEL, PLACE, embedded, picture, run

MANY = 800  # pictures, so that a kill comes before they are done also on a busy machine


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return photos.make(tmp_path, monkeypatch)


@pytest.fixture
def command(project: Path) -> Iterator[subprocess.Popen]:
    """`goal index` on many pictures in a process of its own."""
    for number in range(MANY):
        picture(project / f"{number:03d}.png", number)
    values = tiny.params().model_dump(by_alias=True)
    Path("params.yaml").write_text(json.dumps(values))
    process = subprocess.Popen(
        [sys.executable, "-m", "goal", "index", "photos", "--index", "index", "--model", str(MODEL)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="kill -9"),
        pytest.param(signal.SIGTERM, id="terminate", marks=pytest.mark.slow),
    ],
)
def test_a_kill_loses_at_most_a_batch(command: subprocess.Popen, project: Path, number: int) -> None:
    while command.poll() is None and _count() < 40:
        time.sleep(0.002)
    command.send_signal(number)
    said = command.communicate()[1]
    kept = _count()
    assert 40 <= kept < 4 + MANY, said
    if number == signal.SIGTERM:
        assert command.returncode == 75
        assert f"index: {kept} pictures are indexed; the same command goes on" in said
    database = sqlite3.connect(PLACE / store.DATABASE)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    version = store.opened(PLACE).version()
    found = run(project)
    assert len(found) == 4 + MANY
    # Each batch is one change: what was in is not done again.
    assert store.opened(PLACE).version() - version == -(
        -(4 + MANY - kept) // tiny.params().evaluate.batch_size
    )
    for name in ("000.png", "199.png"):
        np.testing.assert_allclose(found[name.encode()], embedded(project / name), atol=1e-5)


def _count() -> int:
    path = PLACE / store.DATABASE
    if not path.exists():
        return 0
    try:
        # Without SQLite's own waiting: its pauses grow, and a busy writer would starve this reader.
        return sqlite3.connect(path, timeout=0).execute("SELECT count(*) FROM pictures").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
