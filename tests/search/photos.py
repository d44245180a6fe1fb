"""A project with a random network and a folder of pictures to index."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from goal import clip, weights
from goal.datasets import images
from goal.search import index, store
from tests import tiny

PLACE = Path("index")
MODEL = Path("models/base")


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a random network and a folder `photos` of four pictures."""
    tiny.make(tmp_path, monkeypatch, ("zero-shot", "stage1"))
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.png", "deep/d.webp")):
        picture(photos / name, number)
    return photos


def picture(path: Path | bytes, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
    kind = os.fsdecode(path).rpartition(".")[2].replace("jpg", "jpeg")
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, kind)


def run(folder: Path, place: Path = PLACE, model: Path = MODEL) -> dict[bytes, np.ndarray]:
    """Index; the vectors of the index by path."""
    index.run(tiny.params(), folder, place, model, str(model))
    return vectors(place)


def vectors(place: Path = PLACE) -> dict[bytes, np.ndarray]:
    found = store.opened(place)
    ids, values = zip(*found.vectors(), strict=True)
    paths = found.paths(np.concatenate(ids).tolist())
    return dict(zip(paths.values(), np.concatenate(values), strict=True))


def embedded(file: Path) -> np.ndarray:
    """What the network says of one picture, without the index."""
    network = weights.load(MODEL).eval()
    view = clip.preprocess(network.spec)(images.open_image(file, 200))
    with torch.inference_mode():
        return F.normalize(network.encode_images(view[None]), dim=1)[0].numpy()
