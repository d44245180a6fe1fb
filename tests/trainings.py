"""A tiny project for training tests: a few drawn pictures with long captions, pairs, a random CLIP."""

import functools
import glob
import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from goal import config, weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.mining.mined import PAIRS
from goal.model.network import GoalClip, Spec
from goal.text import split_sentences

SPEC = Spec(
    name="custom",
    image_size=32,
    patch_size=8,
    embed_dim=16,
    vision_width=24,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=48,
    text_width=24,
    text_layers=2,
    text_heads=2,
    text_mlp=48,
    vocab_size=49408,
    context_length=40,
    quick_gelu=False,
)
COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "yellow")
THINGS = ("ball", "house", "tree", "car", "boat", "chair", "lamp")


def model(seed: int = 0) -> GoalClip:
    torch.manual_seed(seed)
    return GoalClip(SPEC)


def params(**changes: Any) -> Params:
    """The project's params.yaml with small values; `changes`: by dotted name, with __ for each dot."""
    values = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    values["data"]["name"] = "tiny"
    values["tracking"]["enabled"] = False
    values["train"] |= {"device": "cpu", "loader_workers": 0, "log_every": 3}
    for section in ("stage1", "stage2"):
        values[section] |= {"epochs": 2, "batch_size": 4, "lr": 0.003, "warmup_steps": 1}
    for name, value in changes.items():
        *path, last = name.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    return config.parse(values, "tests")


def rows(count: int, folder: Path, seed: int = 0) -> list[Row]:
    """Pictures of one coloured block on noise, of different sizes, and captions of three sentences."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(40, 70, 2))
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[10:30, 12:34] = random.integers(0, 256, 3)
        path = folder / f"{seed}-{number:03d}.png"
        Image.fromarray(pixels).save(path)
        words = [(random.choice(COLOURS), random.choice(THINGS)) for _ in range(3)]
        caption = " ".join(
            f"There is a {colour} {thing} in part {n}." for n, (colour, thing) in enumerate(words)
        )
        made.append(Row(f"{seed}-{number:03d}", str(path), width, height, (caption,), "tiny"))
    return made


def pairs(pictures: list[Row], without: set[int] = frozenset()) -> list[dict[str, Any]]:
    """One pair per sentence, with random box and similarity; `without`: pictures whose pairs are dropped."""
    random = np.random.default_rng(7)
    mined = []
    for number, row in enumerate(pictures):
        for caption, text in enumerate(row.captions):
            for place, sentence in enumerate(split_sentences(text)):
                x, y = random.integers(0, row.width - 24), random.integers(0, row.height - 24)
                box = dict(zip(("x1", "y1", "x2", "y2"), map(float, (x, y, x + 20, y + 22)), strict=True))
                mined.append(
                    {"id": row.id, "caption": caption, "sentence": place}
                    | {"start": sentence.start, "end": sentence.end, **box}
                    | {"similarity": float(random.uniform(0.1, 0.4)), "source": "fixed"}
                    | {"dropped": "whole image wins" if number in without else ""}
                )
    return mined


def project(train: int = 10, val: int = 4, without: set[int] = frozenset()) -> None:
    """Write a tiny project into the current folder: manifests, pairs, models/base and models/stage1."""
    pictures = rows(train, paths.data_dir("tiny") / "images")
    manifest.write(pictures, paths.manifest("tiny", "train"))
    manifest.write(rows(val, paths.data_dir("tiny") / "images", seed=1), paths.manifest("tiny", "val"))
    write_pairs(pairs(pictures, without))
    for number, name in enumerate(("zero-shot", "stage1")):
        weights.publish(model(number), paths.model_dir(name), {"name": name, "pretrained": "embedded"})


def write_pairs(mined: list[dict[str, Any]]) -> None:
    folder = paths.pairs_dir("train")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(mined, PAIRS), folder / "shard-00000.parquet")


OUTPUTS = (
    "models/{}/model.safetensors",
    "models/{}/card.json",
    "metrics/{}/train.json",
    "metrics/{}/loss.csv",
)


@functools.cache
def forks() -> ForkServerContext:
    """A fork server for child processes: it has no threads and has already done the slow imports."""
    context = multiprocessing.get_context("forkserver")
    # The server reads PYTHONPATH when it starts; from the tests' folders the package is not importable.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    context.set_forkserver_preload(["goal.stages.train", "tests.trainings"])
    # A server from an earlier test has not preloaded these modules, and each child would import for seconds.
    forkserver._forkserver._stop()
    return context


def last_saved() -> int:
    """The step of the newest checkpoint here, -1 without one; safe while a training changes them."""
    # Where a folder is removed meanwhile, glob.glob skips it, and Path.glob and Path.rglob raise.
    return max((int(path[-8:]) for path in glob.glob("work/train-*/*/step-*")), default=-1)


def outputs(name: str) -> dict[str, bytes]:
    """The bytes of all files that a training writes."""
    return {path: Path(path.format(name)).read_bytes() for path in OUTPUTS}
