"""A project folder with a few drawn scenes, to mine pairs from."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from goal import config, weights
from goal.config import paths
from goal.datasets import manifest, scenes_layout, scenes_render, scenes_words
from goal.datasets.manifest import Row
from goal.mining.mined import SIDES
from goal.model.network import GoalClip
from tests.imports import ROOT
from tests.tiny import SPEC


def params(**sections: dict) -> config.Params:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["data"]["name"] = "drawn"
    values["regions"] |= {"shard_size": 3, "workers": 1}
    values["pairs"] |= {"shard_size": 2, "workers": 1, "batch_size": 7, "contact_sheet": 3}
    for name, changes in sections.items():
        values[name] |= changes
    return config.parse(values, "test")


def draw(split: str, index: int) -> tuple[Row, list[dict]]:
    """A scene on disk, its row, and its lines of the truth."""
    scene = scenes_layout.draw(scenes_layout.stream(0, split, index, "layout"), 3, 4)
    picture, boxes = scenes_render.render(scene, 96)
    path = f"data/drawn/images/{split}-{index}.png"
    Image.fromarray(picture).save(path)
    caption, spans = scenes_words.long_caption(scene, scenes_layout.stream(0, split, index, "words"))
    row = Row(f"{split}-{index}", path, 96, 96, (caption,), "scenes")
    truth = [
        {"id": row.id, "caption": 0, "start": start, "end": end, **dict(zip(SIDES, box, strict=True))}
        for (start, end), box in zip(spans, boxes, strict=True)
    ]
    return row, truth


def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a project's folder with 7 train and 2 test scenes and a random base network."""
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("data/drawn/images").mkdir(parents=True)
    scenes = {
        split: [draw(split, index) for index in range(count)] for split, count in (("train", 7), ("test", 2))
    }
    for split, found in scenes.items():
        manifest.write([row for row, _ in found], paths.manifest("drawn", split))
    truth = [line for found in scenes.values() for _, lines in found for line in lines]
    manifest.write_table(manifest.table(truth, manifest.TRUTH), Path("data/drawn/truth.parquet"))
    torch.manual_seed(0)
    weights.save(GoalClip(SPEC), paths.model_dir("zero-shot"))
    return root


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
