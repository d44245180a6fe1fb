"""Regions: the fast SAM against the package's generator, and a detector against SAM, as ratios of one run.

    python -m benchmarks.regions              # all parts on a CPU; figures in benchmarks/results/regions.json
    python -m benchmarks.regions agreement    # some of: agreement large detector
    python -m benchmarks.regions large --checkpoint sam_vit_b_01ec64.pth
    python -m benchmarks.regions --device cuda --model vit_h --checkpoint sam_vit_h_4b8939.pth

| part | measures |
|---|---|
| agreement | scenes, a small trained SAM: which of the package's boxes the others find, how fast |
| large | seconds and peak memory beyond the network on a 1500 x 2000 picture, a process a path |
| detector | seconds a picture of a small detector and the fixed crops, against the package's SAM |

Without a checkpoint SAM has random weights. Its time depends on them only by how many masks pass the filters:
half do here (`--passing`), and those count as stable, more than do of real masks. Pruning (points that
earlier masks explain are skipped) needs masks that mean something: `large` measures it with a checkpoint.
The detector has random weights too, which find nothing: of its time, sorting out boxes is missing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry
from torchvision.models import get_model
from torchvision.ops import box_iou

from benchmarks import figures, small_sam
from goal import config
from goal.regions import Region, sam, sam_weights
from goal.regions.detector import Detector
from goal.regions.fixed import Fixed
from goal.regions.sam_decoder import Picture
from goal.regions.sam_encoder import encode
from goal.runtime import devices

HEIGHT, WIDTH = 1500, 2000
AREAS = (0.01, 0.80)
DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
# A GPU's first calls load what later ones have.
GPU_REPEATS = 5
PEAK = "peak GiB beyond the network"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all by default")
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--checkpoint", default="", help="SAM's weights; none: random ones")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--points", type=int, default=32, help="points a side")
    parser.add_argument(
        "--passing", type=float, default=0.5, help="share of masks that pass (random weights)"
    )
    parser.add_argument("--pictures", type=int, default=12, help="scenes of `agreement`")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--threshold", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](arguments)))
        return
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    settings["checkpoint"] = Path(arguments.checkpoint).name
    if arguments.device == "cuda":
        settings["device"] = torch.cuda.get_device_name()
    for part in arguments.parts or PARTS:
        figures.tell("regions", f"{part} ({arguments.device})", settings, PARTS[part](arguments))


def agreement(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Boxes of the fast and the pruned path against the package's, same weights, same grid."""
    device = devices.resolve(arguments.device, "--device")
    settings = _settings(arguments, pred_iou_threshold=0.8, stability_threshold=0.85)
    pruning = settings.model_copy(update={"prune_points": True})
    # Each its own network: the fast path may change the precision of its.
    paths = {
        name: make(sam_weights.fill(small_sam.build, small_sam.WEIGHTS, "small").to(device), given)
        for name, make, given in (
            ("package", sam.Package, settings),
            ("fast", sam.Fast, settings),
            ("pruned", sam.Fast, pruning),
        )
    }
    pictures = [_scene(index) for index in range(arguments.pictures)]
    asked = _count_points()
    found, points, seconds = {}, {}, {}
    for name, path in paths.items():
        if device.type == "cuda":
            path.propose(pictures[:1])
        asked.clear()
        start = _clock(device)
        found[name] = [path.propose([picture])[0] for picture in pictures]
        seconds[name], points[name] = _clock(device) - start, sum(asked)
    total = sum(map(len, found["package"]))
    yield "boxes of the package", total
    for name in ("fast", "pruned"):
        pairs = list(zip(found["package"], found[name], strict=True))
        partners = [(region, _partner(region, others)) for regions, others in pairs for region in regions]
        kept = [(region, other) for region, other in partners if other is not None]
        yield f"{name}: share of them found, IoU >= 0.9", len(kept) / total
        yield f"{name}: share of them equal to the pixel", sum(a.box == b.box for a, b in kept) / total
        differ = sum(_passes(a) != _passes(b) for a, b in kept)
        yield f"{name}: share that the area filter decides otherwise", differ / total
        yield (
            f"{name}: largest difference of an area, share of the picture",
            max(abs(a.area_ratio - b.area_ratio) for a, b in kept),
        )
        yield f"{name}: share of the points asked", points[name] / points["fast"]
        yield f"{name}: times faster than the package", seconds["package"] / seconds[name]
    yield "pruned: times faster than fast", seconds["fast"] / seconds["pruned"]


def large(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Time and memory of the whole way of one large picture."""
    names = ["package", "fast", *(["pruned"] if arguments.checkpoint else [])]
    results = {name: _measured(name, arguments) for name in names}
    for name, result in results.items():
        for measure, value in result.items():
            yield f"{name}: {measure}", value
    for name in names[1:]:
        for measure in ("seconds", "CPU seconds"):
            yield f"{name}: times faster ({measure})", results["package"][measure] / results[name][measure]
        yield f"{name}: share of the package's memory", results[name][PEAK] / results["package"][PEAK]


def detector(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """A small detector with the fixed crops against the package's SAM, both on the large picture."""
    package = _measured("package", arguments)
    found = _measured("detector", arguments)
    yield "detector + fixed: seconds", found["seconds"]
    yield "detector + fixed: times faster than the package's SAM", package["seconds"] / found["seconds"]
    yield "the same, CPU seconds", package["CPU seconds"] / found["CPU seconds"]


PARTS = {"agreement": agreement, "large": large, "detector": detector}
# What the figures hang on, and what a child is told.
SETTINGS = ("model", "checkpoint", "device", "points", "passing", "pictures", "threads")


def _measured(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one of CHILDREN; what two parts ask for is measured once."""
    options = [f"--{key}={getattr(arguments, key)}" for key in SETTINGS]
    if not arguments.checkpoint:
        options.append(f"--threshold={_child('calibrate', tuple(options))['threshold']}")
    return _child(name, tuple(options))


@cache
def _child(name: str, options: tuple[str, ...]) -> dict[str, float]:
    """A process of its own shares no memory and no caches with the others."""
    command = [sys.executable, "-m", "benchmarks.regions", *options, f"--child={name}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _calibrate(arguments: argparse.Namespace) -> dict[str, float]:
    """The predicted IoU that the wanted share of random weights' masks exceeds."""
    network = _network(arguments)
    fast = sam.Fast(network, _settings(arguments))
    with torch.inference_mode():
        embedding = encode(network.image_encoder, fast.prepare(_photograph())[None])[0].to(fast.dtype)
        points = torch.rand(64, 2, generator=torch.Generator().manual_seed(0)) * 768
        quality = Picture(network, embedding).masks(points.to(embedding.device), -torch.inf).quality
    return {"threshold": quality.quantile(1 - arguments.passing).item()}


def _time_sam(
    arguments: argparse.Namespace, path: type[sam.Fast | sam.Package], prune: bool = False
) -> dict[str, float]:
    changes = {"prune_points": prune}
    if not arguments.checkpoint:
        changes |= {"stability_threshold": 0.0, "pred_iou_threshold": arguments.threshold}
    network = _network(arguments)
    return _timed(path(network, _settings(arguments, **changes)).propose, network.device)


def _time_detector(arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(get_model(DETECTOR, weights=None, weights_backbone=None).state_dict(), file.name)
        settings = config.Detector(model=DETECTOR, checkpoint=file.name, min_score=0.3, max_boxes=30)
        network = Detector(settings, arguments.device)
    return _timed(
        lambda pictures: [
            a + b for a, b in zip(Fixed().propose(pictures), network.propose(pictures), strict=True)
        ],
        network.device,
    )


CHILDREN = {
    "calibrate": _calibrate,
    "package": lambda arguments: _time_sam(arguments, sam.Package),
    "fast": lambda arguments: _time_sam(arguments, sam.Fast),
    "pruned": lambda arguments: _time_sam(arguments, sam.Fast, prune=True),
    "detector": _time_detector,
}


def _timed(
    propose: Callable[[list[np.ndarray]], list[list[Region]]], device: torch.device
) -> dict[str, float]:
    """Seconds a picture: of the first on a CPU, the mean of later ones on a GPU."""
    picture, repeats = _photograph(), 1
    if device.type == "cuda":
        repeats = GPU_REPEATS
        propose([picture])
    devices.forget_peak(device)
    before = devices.peak(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        found = propose([picture])  # on the host in the end, so a GPU has finished
    seconds = {
        "seconds": (time.perf_counter() - wall) / repeats,
        "CPU seconds": (time.process_time() - cpu) / repeats,
    }
    return {**seconds, PEAK: (devices.peak(device) - before) / 2**30, "regions": len(found[0])}


def _clock(device: torch.device) -> float:
    """Of the processor on a CPU, which hardly sees what else the machine does."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _network(arguments: argparse.Namespace):
    build = sam_model_registry[arguments.model]
    device = devices.resolve(arguments.device, "--device")
    if arguments.checkpoint:
        return sam_weights.fill(build, Path(arguments.checkpoint), arguments.model).to(device)
    torch.manual_seed(0)
    return build().requires_grad_(False).to(device)


def _settings(arguments: argparse.Namespace, **changes) -> config.Sam:
    values = config.load().regions.sam.model_dump()
    return config.Sam(**{**values, "points_per_side": arguments.points, **changes})


def _photograph() -> np.ndarray:
    """A 1500 x 2000 picture: what is in it does not matter to the time."""
    return np.asarray(Image.fromarray(small_sam.picture(3, 0)[0]).resize((WIDTH, HEIGHT), Image.BICUBIC))


def _scene(index: int) -> np.ndarray:
    """A scene that the small SAM has not seen: small, as large as a photograph, or cut to another shape."""
    image = Image.fromarray(small_sam.picture(9, index)[0])
    size = [(128, 128), (640, 640), (500, 375)][index % 3]
    return np.asarray(image.resize(size, Image.BICUBIC))


def _count_points() -> list[int]:
    """The sizes of the calls that the fast path makes from now on."""
    asked: list[int] = []
    masks = Picture.masks

    def counted(picture, points, quality):
        asked.append(len(points))
        return masks(picture, points, quality)

    Picture.masks = counted
    return asked


def _partner(region: Region, others: list[Region]) -> Region | None:
    if not others:
        return None
    overlap = box_iou(torch.tensor([region.box]), torch.tensor([other.box for other in others]))[0]
    return others[int(overlap.argmax())] if overlap.max() >= 0.9 else None


def _passes(region: Region) -> bool:
    return AREAS[0] <= region.area_ratio <= AREAS[1]


if __name__ == "__main__":
    main()
