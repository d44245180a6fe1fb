"""Commit, digests and machine: read from real git and DVC projects."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from goal.errors import UserError
from goal.tracking import provenance

DVC_YAML = """\
stages:
  draw:
    cmd: mkdir -p data/set/in && cp source.txt data/set/train.parquet && cp source.txt data/set/in/a.png
    deps: [source.txt]
    outs: [data/set]
  learn:
    cmd: mkdir -p models/stage1 && cp data/set/train.parquet models/stage1/model.safetensors
    deps: [data/set]
    outs: [models/stage1]
  look:
    cmd: mkdir -p metrics/stage1 && cp models/stage1/model.safetensors metrics/stage1/test.json
    deps: [models/stage1]
    metrics:
      - metrics/stage1/test.json:
          cache: false
  other:
    cmd: cp source.txt other.txt
    deps: [source.txt]
    outs: [other.txt]
"""


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "goal").mkdir()
    (tmp_path / "goal/a.py").write_text("a = 1\n")
    (tmp_path / "README.md").write_text("text\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after a real `dvc repro`."""
    root = tmp_path_factory.mktemp("dvc")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "source.txt").write_text("héllo\n")
    for command in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, check=True, timeout=120)
    return root


def test_a_clean_checkout_has_its_commit_and_no_changes(checkout: Path) -> None:
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert provenance.code(checkout) == provenance.Code(head.strip(), ())


def test_changed_and_new_code_is_named_and_other_files_are_not(checkout: Path) -> None:
    (checkout / "goal/a.py").write_text("a = 2\n")
    (checkout / "goal/new öne.py").write_text("")
    (checkout / "README.md").write_text("other\n")
    (checkout / "photo.png").write_text("")
    assert provenance.code(checkout).changed == ("goal/a.py", "goal/new öne.py")


def test_outside_git_the_commit_is_unknown(tmp_path: Path) -> None:
    assert provenance.code(tmp_path) == provenance.Code(provenance.UNKNOWN, ())


def test_where_git_fails_the_code_does_not_count_as_committed(checkout: Path) -> None:
    (checkout / ".git/index").write_bytes(b"damaged")
    assert provenance.code(checkout).changed == (provenance.UNKNOWN,)


def test_digests_are_those_that_dvc_writes(reproduced: Path) -> None:
    stages = provenance.lock(reproduced / "dvc.lock")
    assert stages["draw"].outs == {"data/set": provenance.md5(reproduced / "data/set")}
    assert stages["draw"].deps == {"source.txt": provenance.md5(reproduced / "source.txt")}
    assert stages["draw"].outs["data/set"].endswith(".dir")


def test_upstream_is_the_whole_way_to_a_model_and_its_metrics(reproduced: Path) -> None:
    stages = provenance.lock(reproduced / "dvc.lock")
    wanted = [Path("models/stage1"), Path("metrics/stage1")]
    assert list(provenance.upstream(stages, wanted)) == ["draw", "learn", "look"]
    assert list(provenance.upstream(stages, [Path("models/stage1/model.safetensors")])) == ["draw", "learn"]
    assert provenance.upstream(stages, [Path("models/stage2")]) == {}


def test_without_a_lock_file_there_are_no_stages(tmp_path: Path) -> None:
    assert provenance.lock(tmp_path / "dvc.lock") == {}


@pytest.mark.parametrize("text", ["", "stages: 3", "<<<<<<< HEAD\nstages: {}\n", "stages: {a: {outs: [3]}}"])
def test_a_broken_lock_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(UserError, match=r"dvc\.lock: not a lock file of DVC") as error:
        provenance.lock(tmp_path / "dvc.lock")
    assert "\n" not in str(error.value)


def test_a_missing_input_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: cannot be read: No such file.*dvc repro"):
        provenance.md5(tmp_path / "nothing")


def test_a_fingerprint_knows_values_and_not_the_order_of_keys() -> None:
    locked = provenance.Locked({"a": "1"}, {})
    assert provenance.fingerprint({"a": 1, "b": [2, locked]}) == provenance.fingerprint(
        {"b": [2, provenance.Locked({"a": "1"}, {})], "a": 1}
    )
    assert provenance.fingerprint({"a": 1}) != provenance.fingerprint({"a": "1"})
    assert provenance.fingerprint([1, 2]) != provenance.fingerprint([2, 1])


def test_flatten_joins_keys_of_leaves() -> None:
    assert provenance.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": ""}) == {"a.b": 1, "a.c.d": [2], "e": ""}


def test_packages_and_hardware_are_this_machine_s() -> None:
    assert provenance.packages()["torch"] == metadata.version("torch")
    machine = provenance.hardware()
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert int(machine["cores"]) >= 1
    assert float(machine["memory_gib"]) > 0
