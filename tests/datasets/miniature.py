"""Published sets in miniature: pictures, archives, and the data stage over them."""

import dataclasses
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goal.config import paths
from goal.datasets import manifest, released
from goal.stages import data as stage
from tests.datasets.conftest import Build


def jpeg(number: int) -> bytes:
    """A picture of its own, number + 8 pixels wide."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, number + 8, 3), number % 28 * 9, dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def packed(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def put(folder: Path, members: dict[str, bytes]) -> None:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def has(monkeypatch: pytest.MonkeyPatch, source: str, *galleries: int) -> None:
    """Let a set have galleries of so many test pictures, instead of its own."""
    small = dataclasses.replace(released.RELEASES[source], galleries=galleries)
    monkeypatch.setitem(released.RELEASES, source, small)


def run(
    build: Build, source: str, root: Path | str = "", accept: str | None = None, gallery: int = 0, **data: Any
) -> dict[str, list[manifest.Row]]:
    """The data stage; the rows of each split, whose pictures must be there and of the stated size.

    accept: the set whose terms are accepted; None: this one.
    """
    download = {"root": str(root), "accept_terms": source if accept is None else accept, "gallery": gallery}
    values = {"name": f"my-{source}", "source": source, "download": download, "max_rejected": 1.0}
    stage.run(build(**values | data))
    splits = {split: manifest.read(paths.manifest(f"my-{source}", split)) for split in manifest.SPLITS}
    for rows in splits.values():
        for row in rows:
            with Image.open(row.image) as image:
                assert image.size == (row.width, row.height)
            assert row.source.partition(",")[0] == source
    return splits


def ids(splits: dict[str, list[manifest.Row]]) -> dict[str, list[str]]:
    return {split: [row.id for row in rows] for split, rows in splits.items() if rows}


def rejected(source: str) -> list[dict[str, str]]:
    path = paths.data_dir(f"my-{source}") / "rejected.parquet"
    return manifest.read_table(path, manifest.REJECTED).to_pylist()
