"""A project folder with six test pictures and random networks, small enough to make in every test."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from goal import config, weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.mining import mined
from goal.model.network import GoalClip, Spec
from tests.imports import ROOT

SPEC = Spec(
    name="custom",
    image_size=32,
    patch_size=16,
    embed_dim=24,
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=64,
    text_width=32,
    text_layers=2,
    text_heads=2,
    text_mlp=64,
    vocab_size=49408,
    context_length=77,
    quick_gelu=False,
)
CAPTIONS = (
    "A red ball.",
    "Two dogs sleep on a mat. One of them is brown.",
    "A tall tree stands by the river. " * 12,
    "A boat.",
    "Rain falls on the town. The streets are empty.",
    "A man reads. " * 90,
)


def make(root: Path, monkeypatch: pytest.MonkeyPatch, models: tuple[str, ...] = ("zero-shot",)) -> Path:
    """Enter a project of six test pictures, two captions each, with a random network for each model."""
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (root / "data/tiny/images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    rows = []
    for number, caption in enumerate(CAPTIONS):
        path = f"data/tiny/images/{number}.png"
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(path)
        rows.append(Row(f"p{number}", path, 50, 40, (caption, f"Number {number}."), "test"))
    manifest.write(rows, Path("data/tiny/test.parquet"))
    for seed, name in enumerate(models):
        torch.manual_seed(seed)
        weights.save(GoalClip(SPEC), paths.model_dir(name))
    return root


def params() -> Params:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["data"]["name"] = "tiny"
    values["evaluate"] = {"ks": [1, 2, 10], "batch_size": 4, "chunk": 3}
    values["regions"] |= {"sources": ["fixed"], "workers": 1}
    values["pairs"]["workers"] = 1
    values["report"] = {"gallery": 3, "examples": 2, "grounding": 2}
    # One of the models that the tests have: the report is about it, and verbs take it where none is named.
    values["register"]["model"] = "stage2"
    return config.parse(values, "test")


def twin(row: Row, image: str, attribute: str) -> dict:
    return {**vars(row), "id": f"{row.id}t", "image": image, "twin_of": row.id, "attribute": attribute}


def pair(name: str, similarity: float, **changes: object) -> dict:
    box = {"x1": 0.0, "y1": 0.0, "x2": 20.0, "y2": 20.0}
    where = {"caption": 0, "sentence": 0, "start": 0, "end": 5}
    return {"id": name, **where, **box, "similarity": similarity, "source": "fixed", "dropped": ""} | changes


def write_pairs(*pairs: dict) -> None:
    Path("pairs/test").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(pairs), mined.PAIRS), "pairs/test/shard-00000.parquet")
