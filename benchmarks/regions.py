"""Regions: goal's SAM against the package's mask generator, as ratios of one run, and a detector.

    python -m benchmarks.regions              # all parts on a CPU; figures in benchmarks/results/regions.json
    python -m benchmarks.regions agreement    # some of: agreement speed memory detector
    python -m benchmarks.regions speed --checkpoint sam_vit_b_01ec64.pth
    python -m benchmarks.regions --device cuda --model vit_h --checkpoint sam_vit_h_4b8939.pth

| part | measures |
|---|---|
| agreement | scenes, a small trained SAM: which of the package's boxes goal finds, and how fast |
| speed | encoder and points of a 1024 x 768 picture, medians of alternating runs |
| memory | peak memory beyond the network on that picture, a process each |
| detector | seconds of a small detector and the fixed crops on that picture |

In `speed` the package has the points per batch that suit it best, tried first; goal has its own default.
Without a checkpoint SAM has random weights. Its time depends on them only by how many masks pass the filters:
half do here (`--passing`), and those count as stable, more than do of real masks. Pruning needs masks that
mean something: `speed` measures it with a checkpoint only.
The detector has random weights too, which find nothing: of its time, sorting out boxes is missing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torchvision.models import get_model
from torchvision.ops import box_iou

from benchmarks import figures, small_sam
from benchmarks.sam_package import Package
from goal import config
from goal.regions import Region, Source, sam_weights
from goal.regions.detector import Detector
from goal.regions.fixed import Fixed
from goal.regions.sam import MaskGenerator
from goal.runtime import devices

PHOTOGRAPH = (1024, 768)
AREAS = (0.01, 0.80)
DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
BATCHES = [1, 4, 64]
GRID = 32  # points per side of params.yaml


def main() -> None:
    parts = {"agreement": agreement, "speed": speed, "memory": memory, "detector": detector}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="parts to run; all by default")
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--checkpoint", default="", help="SAM's weights; none: random ones")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--points", type=int, default=16, help="points per side")
    parser.add_argument(
        "--passing", type=float, default=0.5, help="share of masks that pass (random weights)"
    )
    parser.add_argument("--pictures", type=int, default=12, help="scenes of `agreement`")
    parser.add_argument("--repeats", type=int, default=3, help="runs per side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", default="", choices=["package", "goal"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(json.dumps(_peak(arguments)))
        return
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    settings["checkpoint"] = Path(arguments.checkpoint).name
    if arguments.device == "cuda":
        settings["device"] = torch.cuda.get_device_name()
    for part in arguments.parts or parts:
        figures.tell("regions", f"{part} ({arguments.device})", settings, parts[part](arguments))


# What the figures depend on, and what a child is given.
SETTINGS = ("model", "checkpoint", "device", "points", "passing", "pictures", "repeats", "threads")


def agreement(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Boxes of goal's SAM, also pruned, against the package's: same weights, same grid."""
    device = devices.resolve(arguments.device, "--device")
    settings = config.load().regions.sam.model_copy(
        update={"pred_iou_threshold": 0.8, "stability_threshold": 0.85}
    )
    network = sam_weights.fill(small_sam.build, small_sam.WEIGHTS, "small").to(device)
    sources = {
        "package": Package(network, settings),
        "goal": MaskGenerator(network, settings),
        "pruned": MaskGenerator(network, settings.model_copy(update={"prune_points": True})),
    }
    pictures = [_scene(index) for index in range(arguments.pictures)]
    found, points, seconds = {}, {}, {}
    for name, source in sources.items():
        source.propose(pictures[0])
        with _qualities(network) as asked:
            start = _clock(device)
            found[name] = [source.propose(picture) for picture in pictures]
            seconds[name], points[name] = _clock(device) - start, sum(map(len, asked))
    total = sum(map(len, found["package"]))
    yield "boxes of the package", total
    for name in ("goal", "pruned"):
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
        yield f"{name}: share of the points asked", points[name] / points["goal"]
        yield f"{name}: times faster than the package", seconds["package"] / seconds[name]
    yield "pruned: times faster than goal", seconds["goal"] / seconds["pruned"]


def speed(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Encoder, points and both, per picture; goal and the package take turns, each at its best batch."""
    settings, network, picture = _settings(arguments), _network(arguments), _photograph(*PHOTOGRAPH)
    tried = {}
    for batch in BATCHES:
        few = settings.model_copy(update={"points_per_side": 8, "points_per_batch": batch})
        tried[batch] = _seconds(network.device, Package(network, few).propose, picture)[0]
    best = min(tried, key=tried.__getitem__)
    yield "package: points per batch that suit it best", best
    sources: dict[str, Source] = {
        "package": Package(network, settings.model_copy(update={"points_per_batch": best})),
        "goal": MaskGenerator(network, settings),
    }
    if arguments.checkpoint:
        sources["pruned"] = MaskGenerator(network, settings.model_copy(update={"prune_points": True}))
    side = network.image_encoder.img_size
    pixels = torch.randn(1, 3, side, side, device=network.device)
    encoder, whole = [], {name: [] for name in sources}
    for _ in range(arguments.repeats):
        with torch.inference_mode():
            encoder.append(_seconds(network.device, network.image_encoder, pixels))
        for name, source in sources.items():
            whole[name].append(_seconds(network.device, source.propose, picture))
    for index, clock in enumerate(("seconds", "CPU seconds")):
        encoding = median(run[index] for run in encoder)
        yield f"encoder, {clock}", encoding
        points = {
            name: (median(run[index] for run in runs) - encoding) / arguments.points**2
            for name, runs in whole.items()
        }
        for name in sources:
            yield f"{name}: {clock} per point", points[name]
            yield f"{name}: times faster, points ({clock})", points["package"] / points[name]
            grid = {source: encoding + GRID**2 * points[source] for source in ("package", name)}
            yield f"{name}: encoder and {GRID} x {GRID} points, {clock}", grid[name]
            yield f"{name}: times faster, both ({clock})", grid["package"] / grid[name]


def memory(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """GiB at most beyond the network; a process of its own shares no memory with the others."""
    peaks = {}
    for name in ("package", "goal"):
        options = [f"--{key}={getattr(arguments, key)}" for key in SETTINGS]
        command = [sys.executable, "-m", "benchmarks.regions", *options, f"--child={name}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[name] = json.loads(output.splitlines()[-1])
        yield f"{name}: GiB", peaks[name]
    yield "goal: share of the package's memory", peaks["goal"] / peaks["package"]


def detector(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """A small detector with the fixed crops."""
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(get_model(DETECTOR, weights=None, weights_backbone=None).state_dict(), file.name)
        settings = config.Detector(model=DETECTOR, checkpoint=file.name, min_score=0.3, max_boxes=30)
        network = Detector(settings, arguments.device)
    picture = _photograph(*PHOTOGRAPH)
    network.propose(picture)
    runs = [
        _seconds(network.device, lambda: Fixed().propose(picture) + network.propose(picture))
        for _ in range(arguments.repeats)
    ]
    yield "detector + fixed: seconds", median(wall for wall, _ in runs)
    yield "detector + fixed: CPU seconds", median(cpu for _, cpu in runs)


def _peak(arguments: argparse.Namespace) -> float:
    # With few points: their number does not change the peak. The package takes few of them at once.
    settings = _settings(arguments).model_copy(update={"points_per_side": 4, "points_per_batch": 4})
    network, picture = _network(arguments), _photograph(*PHOTOGRAPH)
    source = {"package": Package, "goal": MaskGenerator}[arguments.child](network, settings)
    devices.forget_peak(network.device)
    before = devices.peak(network.device)
    source.propose(picture)
    return (devices.peak(network.device) - before) / 2**30


def _seconds(device: torch.device, work: Callable[..., object], *given: object) -> list[float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*given)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return [time.perf_counter() - wall, time.process_time() - cpu]


def _clock(device: torch.device) -> float:
    """Of the processor on a CPU, which hardly sees what else the machine does."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _network(arguments: argparse.Namespace) -> Sam:
    build = sam_model_registry[arguments.model]
    device = devices.resolve(arguments.device, "--device")
    if arguments.checkpoint:
        return sam_weights.fill(build, Path(arguments.checkpoint), arguments.model).to(device)
    torch.manual_seed(0)
    return build().requires_grad_(False).to(device)


def _settings(arguments: argparse.Namespace) -> config.Sam:
    """Those of params.yaml; with random weights, thresholds that the wanted share of masks passes."""
    settings = config.load().regions.sam.model_copy(update={"points_per_side": arguments.points})
    if arguments.checkpoint:
        return settings
    network = _network(arguments)
    few = settings.model_copy(update={"points_per_side": 8, "pred_iou_threshold": torch.inf})
    with _qualities(network) as qualities:
        MaskGenerator(network, few).propose(_photograph(*PHOTOGRAPH))
    threshold = torch.cat(qualities)[:, 1:].float().quantile(1 - arguments.passing).item()
    assert threshold > 0, "the package filters nothing at 0 or below"
    return settings.model_copy(update={"pred_iou_threshold": threshold, "stability_threshold": 0.0})


@contextmanager
def _qualities(network: Sam) -> Iterator[list[torch.Tensor]]:
    """The qualities that the network predicts within: (points, 4) per forward pass."""
    found: list[torch.Tensor] = []
    hook = network.mask_decoder.iou_prediction_head.register_forward_hook(
        lambda module, given, result: found.append(result)
    )
    yield found
    hook.remove()


def _photograph(width: int, height: int) -> np.ndarray:
    """A picture of this size: what is in it does not matter to the time."""
    return np.asarray(Image.fromarray(small_sam.picture(3, 0)[0]).resize((width, height), Image.BICUBIC))


def _scene(index: int) -> np.ndarray:
    """A scene that the small SAM has not seen: small, as large as a photograph, or cut to another shape."""
    image = Image.fromarray(small_sam.picture(9, index)[0])
    size = [(128, 128), (640, 640), (500, 375)][index % 3]
    return np.asarray(image.resize(size, Image.BICUBIC))


def _partner(region: Region, others: list[Region]) -> Region | None:
    if not others:
        return None
    overlap = box_iou(torch.tensor([region.box]), torch.tensor([other.box for other in others]))[0]
    return others[int(overlap.argmax())] if overlap.max() >= 0.9 else None


def _passes(region: Region) -> bool:
    return AREAS[0] <= region.area_ratio <= AREAS[1]


if __name__ == "__main__":
    main()
