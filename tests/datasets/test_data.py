"""The data stage: a folder appears wholly or not at all, and whatever stands in the way is one line."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from goal.errors import EXIT_USER_ERROR, UserError
from goal.stages import data as stage
from tests.datasets.conftest import Build
from tests.imports import ROOT

TINY = {"train": 2, "val": 1, "test": 1, "twins": 0, "image_size": 64}


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}


def test_a_new_run_replaces_the_old_folder(build: Build) -> None:
    stage.run(build(name="x", scenes=TINY | {"train": 5}))
    stage.run(build(name="x", scenes=TINY))
    fresh = tree()
    assert len(list(Path("data/x/images").iterdir())) == 4
    assert {path.name for path in Path("data").iterdir()} == {"x"}
    stage.run(build(name="x", scenes=TINY))
    assert tree() == fresh


def test_what_a_kill_left_is_cleared(build: Build) -> None:
    for left in (".x.partial", ".x.old"):
        Path("data", left, "images").mkdir(parents=True)
        Path("data", left, "images", "half.png").write_bytes(b"half")
    stage.run(build(name="x", scenes=TINY))
    assert {path.name for path in Path("data").iterdir()} == {"x"}
    assert not Path("data/x/images/half.png").exists()


def test_a_failing_source_leaves_the_old_folder(build: Build) -> None:
    stage.run(build(name="x", scenes=TINY))
    before = tree()
    with pytest.raises(UserError, match="none/at/all: not found"):
        stage.run(build(name="x", source="folder", path="none/at/all"))
    assert tree() == before


def test_a_path_that_cannot_be_written(build: Build) -> None:
    Path("data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"data/?.*: .*; fix it and run again") as error:
        stage.run(build(name="x", scenes=TINY))
    assert "\n" not in str(error.value)
    assert Path("data").read_text() == "a file where a folder should be"


def _no_large_files() -> None:
    # What a full disk does, in the child alone: writes past this size fail.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def test_a_disk_that_fills_up(build: Build, tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "presets" / "scenes.yaml").read_text(encoding="utf-8"))
    values["data"]["scenes"] |= TINY | {"train": 30}
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from goal.cli.main import main; main()",
    ]
    run = [*command, "data"]
    found = subprocess.run(
        run, capture_output=True, text=True, preexec_fn=_no_large_files, timeout=120, check=False
    )
    assert found.returncode == EXIT_USER_ERROR, found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("goal: ")
    assert "data/" in last
    assert "File too large" in last
    assert list(Path("data").iterdir()) == []


def test_the_summary_counts(build: Build) -> None:
    stage.run(build(name="x", scenes=TINY))
    summary = json.loads(Path("data/x/summary.json").read_text())
    assert summary["splits"]["train"]["images"] == summary["splits"]["train"]["captions"] == 2
    assert summary["splits"]["train"]["words_per_caption"] > 77
    truth = summary["tables"]["truth"]
    small = dict.fromkeys(("colours", "joint", "short", "short_val"), 1)
    assert summary["tables"] == small | {"truth": truth, "twins": 0}
    assert summary["rejected"] == {}
    assert summary["captions_cleaned"] == 0
