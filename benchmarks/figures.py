"""Figures of a benchmark: printed as a Markdown table, kept in benchmarks/results/ part by part."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def tell(benchmark: str, part: str, settings: dict[str, Any], found: Iterable[tuple[str, float]]) -> None:
    """Print each figure as it comes, then put all into <benchmark>.json, in which other parts stay.

    settings: what the figures hang on; they are kept beside them.
    """
    print(f"\n| {part} | value |\n|---|---|", flush=True)
    figures = {}
    for name, value in found:
        figures[name] = value
        print(f"| {name} | {value:.4g} |", flush=True)
    file = RESULTS / f"{benchmark}.json"
    parts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    parts[part] = {"settings": settings, "figures": figures}
    file.write_text(json.dumps(parts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
