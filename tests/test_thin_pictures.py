"""Pictures of one row or column cost no memory: index, search, page and served model under a limit."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from goal import weights
from goal.datasets import images
from goal.model.network import GoalClip
from goal.regions.detector import Detector
from goal.search import panel
from goal.search.query import Search
from goal.tracking import served_model
from tests import tiny
from tests.imports import ROOT
from tests.regions import small_detector
from tests.search import photos

# Resized whole to the height or width of the view, each would take 6 GB.
SIZES = {"tall.png": (1, 30_000), "wide.png": (30_000, 1)}
SIDE = 224
LIMIT = 1_000_000_000  # bytes


def test_every_reader_of_pictures_takes_thin_ones_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make(tmp_path, monkeypatch)
    weights.save(GoalClip(replace(tiny.SPEC, image_size=SIDE)), photos.MODEL)
    Path("thin").mkdir()
    for name, (width, height) in SIZES.items():
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(Path("thin", name))
    served_model.save(Path("served"), photos.MODEL / "model.safetensors", 200, None, None)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.test_thin_pictures"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def read() -> None:
    """What the other process does, in the project's folder."""
    served = mlflow.pyfunc.load_model("served")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT, taken + LIMIT))
    found = photos.run(Path("thin"))
    assert set(found) == {name.encode() for name in SIZES}
    search = Search(tiny.params(), photos.PLACE, photos.MODEL, str(photos.MODEL))
    for name in SIZES:
        path = Path("thin", name)
        picture = images.open_image(path, 200)
        assert search.by_picture(picture, 1)[0].path.endswith(name.encode())
        assert name in panel.grounded(search.network, picture, name, "A line.")
        answer = served.predict(pd.DataFrame({"image": [path.read_bytes()]}))
        np.testing.assert_allclose(answer[0], found[name.encode()], atol=1e-5)


@pytest.mark.parametrize("size", SIZES.values())
def test_a_detector_has_no_regions_of_a_picture_without_a_row_in_its_input(
    size: tuple[int, int], tmp_path: Path
) -> None:
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    torch.save(
        small_detector.get_model(name, weights=None, weights_backbone=None).state_dict(), tmp_path / "w.pth"
    )
    params = tiny.params().regions.detector.model_copy(
        update={"model": name, "checkpoint": str(tmp_path / "w.pth")}
    )
    assert Detector(params, "cpu").propose(np.zeros((*size, 3), np.uint8)) == []


if __name__ == "__main__":
    read()
