"""Params of a data stage in a folder of its own, and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from goal import config
from tests.imports import ROOT

Build = Callable[..., config.Params]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Makes Params from the shipped ones with some of `data` replaced; the test runs in an empty folder."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")

    def params(
        seed: int = 0, scenes: dict[str, Any] | None = None, folder: dict[str, Any] | None = None, **data: Any
    ):
        values = yaml.safe_load((ROOT / "presets" / "scenes.yaml").read_text(encoding="utf-8"))
        values["seed"] = seed
        values["data"] |= data
        values["data"]["scenes"] |= scenes or {}
        values["data"]["folder"] |= folder or {}
        return config.parse(values, "test")

    return params


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with ten pictures."""
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    for number in range(10):
        picture = np.full((8, 6 + number, 3), number * 20, dtype=np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
    return folder
