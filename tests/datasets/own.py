"""Captions files of every form, written here and read through the data stage."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from goal.datasets import manifest
from goal.stages import data as stage
from tests.datasets.conftest import Build


def rows(count: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [
        {"image": f"images/{number}.png", "caption": f"Caption {number}."} | more for number in range(count)
    ]


def write(folder: Path, entries: list[Any], suffix: str = ".jsonl", encoding: str = "utf-8") -> Path:
    file = folder / f"captions{suffix}"
    with file.open("w", encoding=encoding, newline="") as out:
        if suffix == ".jsonl":
            out.writelines(json.dumps(entry) + "\n" for entry in entries)
        elif suffix == ".json":
            json.dump(entries, out)
        else:
            table = csv.DictWriter(out, entries[0])
            table.writeheader()
            table.writerows(entries)
    return file


def read() -> dict[str, manifest.Row]:
    """All rows of the finished set, by id."""
    found = [row for split in manifest.SPLITS for row in manifest.read(Path(f"data/own/{split}.parquet"))]
    return {row.id: row for row in found}


def rejected() -> list[dict[str, str]]:
    listed = pq.read_table("data/own/rejected.parquet").to_pylist()
    counted = json.loads(Path("data/own/summary.json").read_text())["rejected"]
    assert sum(counted.values()) == len(listed)
    assert set(counted) == {row["reason"] for row in listed}
    return listed


def run(build: Build, path: Path, **more: Any) -> None:
    """Any share of the rows may be unusable, unless `more` says otherwise."""
    values = {"name": "own", "source": "folder", "path": str(path), "max_rejected": 1.0}
    stage.run(build(**values | more))
