"""A project's folder for the benchmarks of mining: drawn scenes or tiny pictures, and a random matcher."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from goal import config, weights
from goal.config import Params, paths
from goal.datasets import manifest, scenes_layout, scenes_render, scenes_words
from goal.datasets.manifest import Row
from goal.model.architectures import SCENES, spec_of
from goal.model.network import GoalClip
from goal.stages import data as stage

ROOT = Path(__file__).parents[1]
NAME = "benchmark"
SPLIT = "train"
# Tiny pictures repeat after so many: rows, not files, are what is scaled.
DIFFERENT = 500


def params(device: str = "cpu", **sections: dict) -> Params:
    """The project's own parameters with changes; one split, one process, one thread."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["data"]["name"] = NAME
    values["regions"] |= {"splits": [SPLIT], "workers": 1, "threads": 1, "device": device}
    values["pairs"] |= {"workers": 1, "threads": 1, "device": device}
    for name, changes in sections.items():
        values[name] |= changes
    return config.parse(values, "benchmark")


def enter(folder: Path, network: str = SCENES, context_length: int = 248) -> None:
    """Make `folder` the project's folder, with a random matcher of this network in models/base."""
    os.chdir(folder)
    (paths.data_dir(NAME) / "images").mkdir(parents=True)
    torch.manual_seed(0)
    spec = replace(spec_of(network), context_length=context_length)
    weights.save(GoalClip(spec), paths.model_dir("zero-shot"))


def scenes(count: int, side: int) -> None:
    """Draw scenes of side x side pixels with their long captions."""
    rows = []
    for number in range(count):
        streams = [scenes_layout.stream(0, SPLIT, number, purpose) for purpose in ("layout", "words")]
        scene = scenes_layout.draw(streams[0], 3, 6)
        path = paths.data_dir(NAME) / "images" / f"{number}.png"
        scenes_render.save(scenes_render.render(scene, side)[0], path)
        caption, _ = scenes_words.long_caption(scene, streams[1])
        rows.append(Row(f"{number:08d}", str(path), side, side, (caption,), "scenes"))
    manifest.write(rows, paths.manifest(NAME, SPLIT))


def photographs(folder: Path) -> None:
    """The rows of one's own folder of photographs with its captions file."""
    stage.run(params(data={"source": "folder", "path": str(folder)}))


def tiny(count: int) -> None:
    """Rows of 16 x 16 pixels with a short caption of their own."""
    draw = np.random.default_rng(0)
    files = [paths.data_dir(NAME) / "images" / f"{number}.png" for number in range(min(count, DIFFERENT))]
    for path in files:
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    rows = [
        Row(f"{number:08d}", str(files[number % len(files)]), 16, 16, (f"Thing number {number}.",), "tiny")
        for number in range(count)
    ]
    manifest.write(rows, paths.manifest(NAME, SPLIT))
