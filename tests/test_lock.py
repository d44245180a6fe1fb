"""The lock file: for every supported Python, each requirement of each package is pinned."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.imports import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
# The oldest patch releases: some packages have more requirements there.
PYTHONS = ("3.11.0", "3.11.2", "3.12.0", "3.13.0", "3.14.0")
# Only DVC's configuration needs it, through hydra; it is pure Python and builds anywhere.
WITHOUT_WHEEL = "antlr4-python3-runtime"


def environment(python: str) -> dict[str, str]:
    """The marker environment of this machine with another Python."""
    short = python.rpartition(".")[0]
    return {**default_environment(), "python_full_version": python, "python_version": short, "extra": ""}


def pins(python: str) -> dict[str, Requirement]:
    """The pins that the lock file has for a Python, by package name."""
    found = [Requirement(line.rstrip(" \\")) for line in LOCK.splitlines() if re.match(r"[a-z0-9]", line)]
    return {pin.name: pin for pin in found if pin.marker is None or pin.marker.evaluate(environment(python))}


def applies(requirement: Requirement, python: str, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate(environment(python) | {"extra": extra}) for extra in extras | {""}
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned(python: str) -> None:
    """Follows requirements through the packages installed here; others are not followed further."""
    pinned = pins(python)
    own = [
        *PROJECT["dependencies"],
        *(line for more in PROJECT["optional-dependencies"].values() for line in more),
    ]
    wanted = [(PROJECT["name"], Requirement(line)) for line in own]
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        by, requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement} of {by} is not in requirements.lock for Python {python}"
        version = str(pinned[name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{by}: {requirement}, not {version}"
        )
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            known = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in known:
            further = Requirement(line)
            if applies(further, python, requirement.extras):
                wanted.append((name, further))
    assert len(seen) > 200


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_resolver_finds_a_wheel_of_each_pin(python: str, tmp_path) -> None:
    """Asks the package registry: every pin exists and needs no build."""
    command = ["pip", "install", "--dry-run", "--target", str(tmp_path), "--python-version", python]
    command += ["--only-binary", ":all:", "--no-binary", WITHOUT_WHEEL, "--require-hashes"]
    result = subprocess.run(
        [sys.executable, "-m", "uv", *command, "-r", str(ROOT / "requirements.lock")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
