"""The order in which a flow runs DVC's stages, on the project's own dvc.yaml."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import graph
from tests.imports import ROOT
from tests.servers import until

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def whole() -> list[str]:
    return graph.stages(ROOT, ["report", "register"])


def test_the_whole_graph_is_walked_once(whole: list[str]) -> None:
    every = {
        f"{name}@{key}" if "foreach" in body else name
        for name, body in STAGES.items()
        for key in body.get("foreach", [""])
    }
    assert set(whole) == every
    assert len(whole) == len(every)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("code", "data"),
        ("code", "base"),
        ("data", "regions"),
        ("regions", "pairs"),
        ("base", "pairs"),
        ("pairs", "train@stage2"),
        ("train@stage1", "train@stage2"),
        ("train@stage1", "train@global"),
        ("train@stage2", "evaluate"),
        ("evaluate", "report"),
        ("evaluate", "register"),
    ],
)
def test_what_a_stage_needs_comes_first(whole: list[str], first: str, then: str) -> None:
    assert whole.index(first) < whole.index(then)


def test_only_what_the_target_needs() -> None:
    assert sorted(graph.stages(ROOT, ["pairs"])) == ["base", "code", "data", "pairs", "regions"]


def test_a_group_is_all_its_stages() -> None:
    found = graph.stages(ROOT, ["train"])
    assert {f"train@{name}" for name in STAGES["train"]["foreach"]} <= set(found)
    assert not [name for name in found if name.startswith("evaluate")]


def test_names_do_not_depend_on_the_current_folder(
    whole: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert graph.stages(ROOT, ["report", "register"]) == whole


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage 'pear' in dvc.yaml; there are: base, code, data"):
        graph.stages(ROOT, ["pear"])


CHAIN = """
stages:
  draw:
    cmd: mkdir -p set && cp source.txt set/a
    deps: [source.txt]
    outs: [set]
  learn:
    cmd: tr a-z A-Z < set/a > model
    deps: [set]
    params: [rate]
    outs: [model]
  judge:
    cmd: cp model score
    deps: [model]
    outs:
      - score:
          cache: false
"""


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A chain of three stages after a real `dvc repro`."""
    (tmp_path / "dvc.yaml").write_text(CHAIN)
    (tmp_path / "params.yaml").write_text("rate: 1\n")
    (tmp_path / "source.txt").write_text("pear\n")
    for command in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, timeout=120)
    return tmp_path


ROW = ["draw", "learn", "judge"]


def test_missing_outs_are_restored_from_the_cache(done: Path) -> None:
    shutil.rmtree(done / "set")
    (done / "model").unlink()
    assert graph.up_to_date(done, ROW) == set(ROW)
    assert (done / "set/a").read_text() == "pear\n"
    assert (done / "model").read_text() == "PEAR\n"


def test_what_depends_on_a_change_is_not_up_to_date(done: Path) -> None:
    (done / "params.yaml").write_text("rate: 2\n")
    assert graph.up_to_date(done, ROW) == {"draw"}


def test_a_stage_that_always_runs_makes_no_other_stale(done: Path) -> None:
    (done / "dvc.yaml").write_text(
        CHAIN.replace("    deps: [source.txt]", "    always_changed: true\n    deps: [source.txt]")
    )
    assert graph.up_to_date(done, ROW) == {"learn", "judge"}
    (done / "source.txt").write_text("plum\n")
    assert graph.up_to_date(done, ROW) == set()


def test_a_result_that_the_cache_lost_is_stale(done: Path) -> None:
    (done / "model").unlink()
    md5 = hashlib.md5(b"PEAR\n", usedforsecurity=False).hexdigest()
    (done / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    assert graph.up_to_date(done, ROW) == {"draw"}


def test_a_changed_file_is_not_overwritten(done: Path) -> None:
    (done / "model").unlink()
    (done / "model").write_text("mine")
    assert "learn" not in graph.up_to_date(done, ROW)
    assert (done / "model").read_text() == "mine"


HOLD = """
import time
from pathlib import Path
from dvc.repo import Repo
with Repo() as repo, repo.lock:
    Path("begun").touch()
    time.sleep(5)
"""


def test_another_dvc_command_is_waited_for(done: Path) -> None:
    """DVC itself would give up after three seconds."""
    other = subprocess.Popen([sys.executable, "-c", HOLD], cwd=done)
    until((done / "begun").exists)
    assert graph.up_to_date(done, ROW) == set(ROW)
    assert other.wait() == 0
