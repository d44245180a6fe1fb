"""The code of a stage: every edit that it can run changes its listing, no other edit does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from goal.runtime import code
from tests.imports import ROOT

STAGES = [stage for stage in code.stages() if stage != "code"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that may be edited."""
    copy = shutil.copytree(ROOT / "goal", tmp_path / "goal", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", copy)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return copy


def listings() -> dict[str, dict[str, str]]:
    """By stage, the digest of each file and the version of each package."""
    found = {stage: code.listing(f"stages/{stage}").splitlines() for stage in STAGES}
    return {stage: dict(line.split() for line in lines) for stage, lines in found.items()}


def test_an_edit_of_any_code_that_a_stage_can_run_is_seen(package: Path) -> None:
    before = listings()
    for file in package.rglob("*.py"):
        file.write_text(file.read_text() + "\nEDITED = True\n")
    after = listings()
    for stage, files in before.items():
        assert [file for file in files if file.endswith(".py") and after[stage][file] == files[file]] == []


def test_an_edit_of_comments_docstrings_and_blank_lines_is_not(package: Path) -> None:
    before = listings()
    for file in package.rglob("*.py"):
        lines = file.read_text().splitlines(keepends=True)
        if lines and lines[0].startswith('"""') and lines[0].rstrip().endswith('"""'):
            lines[0] = '"""Reworded."""\n'
        file.write_text("".join(lines) + "\n\n# a remark\n")
    assert listings() == before


@pytest.mark.parametrize("stage", STAGES)
def test_an_edit_of_code_that_a_stage_cannot_run_is_not(package: Path, stage: str) -> None:
    before = listings()[stage]
    others = [file for file in package.rglob("*.py") if code.name(file) not in before]
    assert others
    for file in others:
        file.write_text("raise RuntimeError\n")
    assert listings()[stage] == before


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_loads_is_listed(stage: str) -> None:
    """Asked of Python itself, not of the reader of imports."""
    program = f"import sys, goal.stages.{stage}; print(*(m for m in sys.modules if m.startswith('goal')))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    listed = (file.removesuffix(".py").removesuffix("/__init__") for file in listings()[stage])
    known = {file.replace("/", ".") for file in listed}
    assert {name for name in loaded if name.split(".")[1:2] not in (["cli"], ["config"])} <= known


def test_files_beside_the_code_and_packages_are_listed(package: Path) -> None:
    before = listings()
    (package / "assets" / "report.html").write_text("<p>other</p>")
    after = listings()
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"report"}
    assert {"torch", "pillow", "nltk"} <= before["train"].keys()
    assert "segment-anything" in before["regions"].keys() - before["data"].keys()
    assert not [version for file, version in before["train"].items() if version == "absent"]


def test_only_comments_and_docstrings_are_cut() -> None:
    source = '''"""Module."""  # first
X = "# no comment"  # a comment

def f(a):
    """Docstring
    of two lines."""
    # a remark
    return '"""no docstring"""'  # ü
'''
    assert code.bare(source) == 'X = "# no comment"\ndef f(a):\n    return \'"""no docstring"""\''
