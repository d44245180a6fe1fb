"""Where the time of a training step goes, and how near it comes to what the device can do.

    python -m benchmarks.stages --captions captions.json --folder photos     # ViT-B-16, batch 8, on a CPU
    python -m benchmarks.stages --captions captions.json --folder photos --device cuda --precision bf16 \\
        --batch 64 --steps 50 --workers 8

The step is the training's own, on batches of the training's own loader over packed pictures. Each stage is a
share of the whole; `waiting for data` is the time in which the device had nothing to do because the batch was
not there. TFLOP/s counts what the matrix products and the attention of a step compute (torch's flop counter),
over the rate of one large matrix product in the same precision, measured first.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step_cases
from benchmarks.photographs import examples, made_up
from benchmarks.step_cases import WEIGHTS, Laps
from goal import losses
from goal.model.network import Features, GoalClip
from goal.training import batches, step
from goal.training.batches import Batch, BatchSampler, Collate
from goal.training.distributed import Group
from goal.training.examples import Needs
from goal.training.learner import Learner

STAGES = ("waiting for data", "image tower", "text tower", "pooling and objective", "backward", "update")
# Side of the matrices whose product tells the device's rate.
SIDES = {"cuda": 8192, "cpu": 2048}
PRODUCTS = 10
WARM = 3  # steps before those that count


class Watched(GoalClip):
    """Marks the end of each tower."""

    laps: Laps

    def forward(self, images: Tensor, *texts: Tensor) -> tuple[Features, ...]:
        seen = self.image_features(images)
        self.laps.mark("image tower")
        read = list(map(self.text_features, texts))
        self.laps.mark("text tower")
        return seen, *read


def take(learner: Learner, loader: Iterator[list[Batch]], group: Group, autocast: Callable) -> None:
    """goal.training.step.backward for one chunk, and the update, with a mark after each stage."""
    laps = learner.model.laps
    laps.begin()
    (batch,) = next(loader)
    laps.mark("waiting for data")
    own = step.embed(learner.model, batch, Needs.of(WEIGHTS), autocast)
    values = step.objective(own, learner.model.scale(), WEIGHTS, group)
    total = losses.weighted(values, WEIGHTS)
    laps.mark("pooling and objective")
    total.backward()
    laps.mark("backward")
    learner.update(values)
    laps.mark("update")


def matrix_rate(arguments: argparse.Namespace) -> float:
    """FLOP/s of the fastest of some large matrix products."""
    side = SIDES[arguments.device]
    kind = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    one, other = (torch.randn(side, side, device=arguments.device, dtype=kind) for _ in range(2))
    laps = Laps(one.device)
    for _ in range(PRODUCTS):
        laps.begin()
        one @ other
        laps.mark("product")
    return 2 * side**3 / min(lap["product"] for lap in laps.take())


def main() -> None:
    parser = step_cases.options(__doc__, batch=8, steps=5)
    parser.add_argument("--folder", type=Path, help="JPEG photographs; without: made-up ones")
    parser.add_argument("--workers", type=int, default=1, help="processes that read ahead")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rate = matrix_rate(arguments)
    model = step_cases.network(arguments, Watched)
    model.laps = Laps(device)
    group, autocast = Group(0, 1, device), step_cases.autocast(arguments)
    learner = step_cases.learner(model, group)
    with tempfile.TemporaryDirectory() as folder:
        files = (
            sorted(arguments.folder.resolve().rglob("*.jpg")) if arguments.folder else made_up(Path(folder))
        )
        captions = step_cases.captions(arguments.captions, max(len(files), arguments.batch))
        with contextlib.chdir(folder):
            data = examples(files, captions, model.spec, packs=True)
            sampler = BatchSampler(len(captions), arguments.batch, arguments.steps + WARM, 0, 0, 0, 1)
            loader = batches.load(data, sampler, Collate(model.spec, 0), arguments.workers, device)
            with FlopCounterMode(display=False) as counter:
                take(learner, loader, group, autocast)
            for _ in range(WARM - 1 + arguments.steps):
                take(learner, loader, group, autocast)
            laps = model.laps.take()[WARM:]
    stages = {name: median(lap[name] for lap in laps) for name in STAGES}
    whole = sum(stages.values())
    flops = counter.get_total_flops()
    found = {
        "seconds_a_step": whole,
        "samples_per_second": arguments.batch / whole,
        "shares": {name: seconds / whole for name, seconds in stages.items()},
        "tflop_a_step": flops / 1e12,
        "tflops": flops / whole / 1e12,
        "matrix_tflops": rate / 1e12,
        "share_of_matrix_rate": flops / whole / rate,
        "gib": step_cases.peak_gib(arguments.device),
    }
    step_cases.write("stages", arguments, found)
    for name, share in found["shares"].items():
        print(f"{name}: {share:.1%}")
    print(
        f"{whole:.3f} s a step, {found['samples_per_second']:.1f} samples/s, {found['gib']:.2f} GiB at most; "
        f"{found['tflops']:.2f} TFLOP/s, {found['share_of_matrix_rate']:.0%} of a matrix product's "
        f"{found['matrix_tflops']:.2f}"
    )


if __name__ == "__main__":
    main()
