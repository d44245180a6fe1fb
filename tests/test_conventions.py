"""What forges and tools read at the top of the repository: the workflow, templates, citation, versions."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.imports import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
DEVCONTAINER = json.loads(
    re.sub(r"^\s*//.*$", "", (ROOT / ".devcontainer/devcontainer.json").read_text(), flags=re.M)
)
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def targets(text: str) -> list[str]:
    return re.findall(r"\bmake ([a-z-]+)", text)


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("github-workflows", ".github/workflows/ci.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/idea.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_the_schema_holds(schema: str, file: str) -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    if not tool.exists():
        pytest.skip("needs check-jsonschema (pip install .[dev])")
    # JSON is YAML's subset: the schema's reader goes by the file's suffix, which .cff is not.
    command = [tool, "--builtin-schema", f"vendor.{schema}", "--default-filetype", "yaml", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [
        *(step["run"] for step in STEPS if "make " in step.get("run", "")),
        (ROOT / ".ci/run").read_text(),
        DEVCONTAINER["postCreateCommand"],
    ],
)
def test_each_make_target_exists(text: str) -> None:
    found = targets(text)
    assert found
    for target in found:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_workflow_runs_what_contributors_run() -> None:
    run = {target for step in STEPS for target in targets(step.get("run", ""))}
    local = set(targets((ROOT / ".ci/run").read_text()))
    assert local <= run
    assert "test-slow" in run


def test_the_workflow_tests_supported_pythons() -> None:
    tested = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == ["3.11", "3.12"]
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in tested)


def test_one_version_everywhere() -> None:
    assert str(CITATION["version"]) == VERSION
    heading = re.findall(r"^## \[(\d[^\]]*)\] - (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    assert heading == (VERSION, str(CITATION["date-released"]))
    images = [
        path for path in (ROOT / "infra").iterdir() if path.suffix == ".yaml" or path.name == "Dockerfile"
    ]
    tags = {tag for path in images for tag in re.findall(r"goal-(?:worker|servers):(\S+)", path.read_text())}
    assert tags == {VERSION}


def test_pre_commit_runs_the_ruff_of_the_lock() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    locked = re.search(r"^ruff==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)[1]
    assert hook["rev"] == f"v{locked}"
