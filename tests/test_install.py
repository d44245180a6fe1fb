"""`make install` on unusual machines: special characters in the path, no HOME, a strict umask, no locale."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT


def run(folder: Path, command: str) -> str:
    kept = {name: value for name, value in os.environ.items() if "SSL" in name or "CERT" in name}
    environment = kept | {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C"}
    done = subprocess.run(
        ["sh", "-c", f"umask 077; {command}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The committed state in a folder whose name has special characters of shells, make and URLs."""
    folder = tmp_path / "my goal [1] ü & 'co'"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_installs_and_starts_without_home_in_any_folder(clone: Path) -> None:
    python = shlex.quote(sys.executable)
    output = run(clone, f"make install PYTHON={python}")
    assert f"goal: installing for Python {sys.version.split()[0]} of {sys.base_prefix}" in output
    assert "Usage: goal" in run(clone, ".venv/bin/goal --help")
    assert "scenes" in run(clone, ".venv/bin/goal check")
    assert "train@stage2" in run(clone, ".venv/bin/dvc stage list")


def test_the_newest_supported_python_is_taken(tmp_path: Path) -> None:
    """The newest one that works and can make virtual environments; python3.13 exists here but fails."""
    for name, code in (("python3.13", 1), ("python3.12", 0), ("python3.11", 0)):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\nexit {code}\n")
        script.chmod(0o755)
    for name in ("sh", "make"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        ["make", "--eval", 'which:\n\t@echo "$(PYTHON)"', "which"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "python3.12")
