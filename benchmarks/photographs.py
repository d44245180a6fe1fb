"""Photographs as a training reads them: one row and pair per picture, and examples from files or packed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.step_cases import WEIGHTS
from goal.datasets import images
from goal.datasets.manifest import Row
from goal.model.network import Spec
from goal.text import split_sentences
from goal.training import packed
from goal.training.examples import Examples, Needs, Pair

MEGAPIXELS = 200.0
PACKERS = 2  # processes


def examples(files: Sequence[Path], captions: Sequence[str], spec: Spec, packs: bool) -> Examples:
    """A picture a caption, the files in turn; its pair is the second sentence and the upper left quarter.

    `packs`: read from shards that are made in the current folder.
    """
    probed = {file: images.probe(file, MEGAPIXELS) for file in files}
    rows, pairs = [], {}
    for number, caption in enumerate(captions):
        file = files[number % len(files)]
        row = Row(f"{number:05}", str(file), *probed[file].size, (caption,), "files")
        sentence = split_sentences(caption)[1]
        box = (0.0, 0.0, row.width / 2, row.height / 2)
        pairs[row.id] = [Pair(0, 1, sentence.start, sentence.end, box, 0.3)]
        rows.append(row)
    crops = {name: [pair.box for pair in own] for name, own in pairs.items()}
    pictures = packed.prepare(rows, crops, spec, MEGAPIXELS, PACKERS) if packs else None
    return Examples(rows, pairs, spec, Needs.of(WEIGHTS), 0, MEGAPIXELS, 0.25, pictures)


def made_up(folder: Path, count: int = 16) -> list[Path]:
    """Smooth noise of 640 x 480 pixels as JPEG, where no photographs are at hand."""
    draw = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (30, 40, 3), np.uint8))
        files.append(folder / f"{number}.jpg")
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(files[-1])
    return files
