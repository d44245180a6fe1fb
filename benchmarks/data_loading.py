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

from goal import boxes, images
from goal.datasets.manifest import Row
from goal.model.architectures import spec_of
from goal.model.network import GoalClip, Spec
from goal.text import Sentence, tokenize
from goal.training import batches, packed, step
from goal.training.batches import Collate, Order
from goal.training.distributed import Group
from goal.training.examples import Examples, Needs, Pair, Sample
from goal.training.learner import optimizer

WEIGHTS = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}
CAPTION = (
    "A photograph of a place. " + "Something stands in its middle, and something else lies beside it. " * 8
)
BATCH = 8
MEGAPIXELS = 200.0


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
    sizes = [images.probe(file, MEGAPIXELS) for file in files]
    rows = [
        Row(f"{number:05}", str(file), *size, (CAPTION,), "files")
        for number, (file, size) in enumerate(zip(files, sizes, strict=True))
    ]
    end = CAPTION.index(".") + 1
    pairs = {row.id: [Pair(0, 0, 0, end, (0.0, 0.0, row.width / 2, row.height / 2), 0.3)] for row in rows}
    crops = {name: [pair.box for pair in own] for name, own in pairs.items()}
    needs = Needs.of(WEIGHTS)
    with contextlib.chdir(folder):
        pictures = packed.prepare(rows, crops, spec, MEGAPIXELS, 2)
    found = {}
    for kind, source in (("files", None), ("packed", pictures)):
        data = Examples(rows, pairs, spec, needs, 0, MEGAPIXELS, 0.25, source)
        for workers in (0, 1, 2):
            order = Order(len(rows), BATCH, epochs, 0, 0, 0, 1)
            coming = batches.load(data, order, Collate(spec, 0), workers, torch.device("cpu"))
            next(coming)
            began = time.perf_counter()
            count = BATCH * sum(1 for _ in coming)
            found[f"{kind}, {workers} processes"] = {
                "pairs_per_second": count / (time.perf_counter() - began)
            }
    return found


def need(spec: Spec) -> dict[str, float]:
    """Pairs a second of a training step with random weights."""
    torch.manual_seed(0)
    model = GoalClip(spec)
    patches = boxes.patch_mask(
        (0, 0, spec.image_size / 2, spec.image_size / 2), spec.image_size, spec.patch_size
    )
    end = CAPTION.index(".") + 1
    tokens = tokenize(CAPTION, [Sentence(0, end, CAPTION[:end])], spec.context_length)
    view = torch.randint(256, (3, spec.image_size, spec.image_size), dtype=torch.uint8)
    sample = Sample(
        view, tokens.ids, view, tokenize(CAPTION[:end], [], 248).ids, patches, tokens.spans[0], None
    )
    chunks = Collate(spec, 0)([sample] * BATCH).chunks()
    adamw, group, times = optimizer(model, 5e-6, 0.05), Group(0, 1, torch.device("cpu")), []
    for _ in range(3):
        began = time.perf_counter()
        step.backward(model, chunks, WEIGHTS, group, lambda: torch.autocast("cpu", enabled=False))
        adamw.step()
        adamw.zero_grad()
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
    spec = Spec(**{**vars(spec_of(arguments.network)), "context_length": 248})
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {
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
