"""Figures of a benchmark: printed as a Markdown table, kept in benchmarks/results/ part by part."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def tell(benchmark: str, part: str, settings: dict[str, Any], found: Iterable[tuple[str, float]]) -> None:
    """Print each figure as it comes, then put all into <benchmark>.json, in which other parts stay.

    settings: what the figures depend on; they are kept beside them, with the commit, versions and machine.
    """
    print(f"\n| {part} | value |\n|---|---|", flush=True)
    figures = {}
    for name, value in found:
        figures[name] = value
        print(f"| {name} | {value:.4g} |", flush=True)
    file = RESULTS / f"{benchmark}.json"
    parts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    parts[part] = {"settings": settings, "origin": origin(), "figures": figures}
    file.write_text(json.dumps(parts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def origin() -> dict[str, Any]:
    """The commit (`-dirty` with uncommitted changes), versions and machine that figures come from."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(command, cwd=RESULTS, check=True, capture_output=True, text=True).stdout.strip()
    cpus = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "cpu": cpus[0].partition(": ")[2] if cpus else platform.processor(),
        "cores": os.cpu_count(),
    }


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
