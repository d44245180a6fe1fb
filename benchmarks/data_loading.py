"""Where a training's pictures come from, and whether they come fast enough: decoders, loader, packed form.

    python -m benchmarks.data_loading --folder FOLDER     # JPEG photographs; ViT-B-16's views of 224 px

Three parts, each a ratio to the first row of its table:

| part | what is timed |
|---|---|
| decoders | one thread, file bytes to upright RGB, the same pixels from all (those installed take part) |
| loader | pairs a second (whole view, crop, tokens) with 0, 1 and 2 loader processes, from files and packed |
| need | pairs a second that a training step of the network takes on this machine, batch 8 |
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks import figures, photographs, step_cases
from goal.model.network import GoalClip, Spec
from goal.text import split_sentences
from goal.training import batches, step
from goal.training.batches import BatchSampler, Collate
from goal.training.distributed import Group

CAPTION = (
    "A photograph of a place. " + "Something stands in its middle, and something else lies beside it. " * 8
)
BATCH = 8


def _pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _torchvision(data: bytes) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg

    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_jpeg(raw, ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).numpy()


def _opencv(data: bytes) -> np.ndarray:
    cv2 = import_module("cv2")
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def _simplejpeg(data: bytes) -> np.ndarray:
    return import_module("simplejpeg").decode_jpeg(data)


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "Pillow": _pillow,
    "torchvision": _torchvision,
    "opencv": _opencv,
    "simplejpeg": _simplejpeg,
}


def decoders(files: Sequence[Path], rounds: int) -> dict[str, dict[str, float]]:
    """Pictures a second of each installed decoder, and how far its pixels lie from Pillow's at most."""
    data = [file.read_bytes() for file in files]
    found = {}
    for name, decode in DECODERS.items():
        try:
            apart = max(int(np.abs(_pillow(one).astype(int) - decode(one)).max()) for one in data[:16])
        except ModuleNotFoundError:
            continue
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            for one in data:
                decode(one)
            times.append(time.perf_counter() - began)
        found[name] = {"pictures_per_second": len(data) / median(times), "pixels_apart": apart}
    return found


def loader(files: Sequence[Path], spec: Spec, epochs: int, folder: Path) -> dict[str, dict[str, float]]:
    """Pairs a second out of the training's loader."""
    found = {}
    for kind in ("files", "packed"):
        with contextlib.chdir(folder):
            data = photographs.examples(files, [CAPTION] * len(files), spec, packs=kind == "packed")
        for workers in (0, 1, 2):
            sampler = BatchSampler(len(files), BATCH, epochs, 0, 0, 0, 1)
            with contextlib.chdir(folder):
                loader = batches.load(data, sampler, Collate(spec, 0), workers, torch.device("cpu"))
                next(loader)
                began = time.perf_counter()
                count = BATCH * sum(1 for _ in loader)
            found[f"{kind}, {workers} processes"] = {
                "pairs_per_second": count / (time.perf_counter() - began)
            }
    return found


def need(spec: Spec) -> dict[str, float]:
    """Pairs a second of a training step with random weights."""
    torch.manual_seed(0)
    model, group = GoalClip(spec), Group(0, 1, torch.device("cpu"))
    sentence = split_sentences(CAPTION)[1]
    view = torch.randint(256, (3, spec.image_size, spec.image_size), dtype=torch.uint8)
    box = (0, 0, spec.image_size / 2, spec.image_size / 2)
    pair = {"caption": CAPTION, "sentence": sentence, "whole": view, "crop": view, "box": box}
    chunks = Collate(spec, 0)(step_cases.samples([pair] * BATCH, spec)).chunks()
    learner, times = step_cases.learner(model, group), []
    for _ in range(3):
        began = time.perf_counter()
        learner.update(step.backward(model, chunks, step_cases.WEIGHTS, group, contextlib.nullcontext))
        times.append(time.perf_counter() - began)
    return {"pairs_per_second": BATCH / min(times)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--network", default="ViT-B-16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="times that the loader reads all pictures")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_loading.json"))
    arguments = parser.parse_args()
    files = sorted(
        path for path in arguments.folder.resolve().rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    spec = step_cases.spec(arguments.network)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
            "origin": figures.origin(),
            "pictures": len(files),
            "decoders": decoders(files, arguments.rounds),
            "loader": loader(files, spec, arguments.epochs, Path(folder)),
            "need": {"training step": need(spec)},
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    for part in ("decoders", "loader", "need"):
        first = None
        for name, values in found[part].items():
            rate = next(iter(values.values()))
            first = first or rate
            print(f"{part}: {name}: {rate:.1f} a second, {rate / first:.2f}x", *list(values.items())[1:])


if __name__ == "__main__":
    main()
