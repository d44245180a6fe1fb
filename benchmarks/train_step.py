"""A training step against the plain one in the release's manner: time and peak memory, the same losses first.

    python -m benchmarks.train_step --captions captions.json         # ViT-B-16, batch 8, fp32, on a CPU
    python -m benchmarks.train_step --captions captions.json --device cuda --precision bf16 --batch 64

`captions.json` is a list of records with a `caption` each, or of texts. Pictures, boxes and weights are
random.

| way | what it does |
|---|---|
| ours | the training's step and update: every picture and text once, pooling by matrix products |
| ours, all terms | the same with margins, sentences against patches and late interaction |
| plain | the release's manner (plain_step.py) |
| plain, anomaly | the same under torch.autograd.set_detect_anomaly, as released |

Each way runs in a process of its own, so that its peak memory is its own. All take the same pairs, whose
pictures lie ready on the host; plain tokenises within the step, as released, ours before the training.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks import step_cases
from benchmarks.plain_step import plain
from benchmarks.step_cases import WEIGHTS, in_a_process, random_pairs, samples
from goal.model.network import GoalClip
from goal.training import step
from goal.training.batches import Collate
from goal.training.distributed import Group

WAYS = ("ours", "ours, all terms", "plain", "plain, anomaly")
# Between losses of two ways, relative and absolute.
NEAR = {"fp32": (1e-3, 1e-4), "bf16": (5e-2, 5e-3)}


def main() -> None:
    parser = step_cases.options(__doc__, batch=8, steps=3)
    parser.add_argument("--chunk", type=int, default=0, help="ours: pairs a forward pass; 0: all at once")
    parser.add_argument("--checkpoint", action="store_true", help="ours: compute activations again")
    parser.add_argument("--compile", action="store_true", help="ours: torch.compile")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    found = {way: in_a_process("benchmarks.train_step", *sys.argv[1:], "--way", way) for way in WAYS}
    ours = found["ours"]
    relative, absolute = NEAR[arguments.precision]
    for other in WAYS[2:]:
        theirs = torch.tensor(found[other]["losses"])
        torch.testing.assert_close(theirs, torch.tensor(ours["losses"]), rtol=relative, atol=absolute)
    ratios = {
        "plain over ours, time": found["plain"]["seconds"] / ours["seconds"],
        "released over ours, time": found["plain, anomaly"]["seconds"] / ours["seconds"],
        "ours over plain, memory": ours["gib"] / found["plain"]["gib"],
        "all terms over ours, time": found["ours, all terms"]["seconds"] / ours["seconds"],
        "all terms over ours, memory": found["ours, all terms"]["gib"] / ours["gib"],
    }
    step_cases.write("train_step", arguments, {"ways": found, "ratios": ratios})
    for way, values in found.items():
        rate = arguments.batch / values["seconds"]
        print(
            f"{way}: {values['seconds']:.3f} s a step, {rate:.1f} samples/s, {values['gib']:.2f} GiB at most"
        )
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step, losses of the first, peak memory of this process (or of its GPU)."""
    torch.autograd.set_detect_anomaly(arguments.way == "plain, anomaly")
    take = step_of(arguments)
    times, losses = [], []
    for _ in range(arguments.steps + 1):
        began = time.perf_counter()
        losses.append(take())
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    first = losses[0] if isinstance(losses[0], list) else torch.stack([*losses[0].values()]).tolist()
    return {"seconds": median(times[1:]), "losses": first, "gib": step_cases.peak_gib(arguments.device)}


def step_of(arguments: argparse.Namespace) -> Callable[[], Any]:
    """A function that takes one step; it alone holds the network, so that no way pays for a second copy."""
    model = step_cases.network(arguments)
    pairs = random_pairs(arguments.captions, arguments.batch, model.spec)
    if arguments.way.startswith("plain"):
        return plain(model, pairs, step_cases.autocast(arguments))
    return _ours(model, pairs, arguments)


def _ours(
    model: GoalClip, pairs: list[dict[str, Any]], arguments: argparse.Namespace
) -> Callable[[], dict[str, torch.Tensor]]:
    """A step as goal.stages.train takes it, of a batch as the loader hands it over."""
    model.set_grad_checkpointing(arguments.checkpoint)
    group = Group(0, 1, model.logit_scale.device)
    weights = step_cases.ALL_TERMS if arguments.way == "ours, all terms" else WEIGHTS
    learner = step_cases.learner(model, group, weights)
    wrapped = step.wrapped(model, arguments.compile, group)
    sent = Collate(model.spec, arguments.chunk)(samples(pairs, model.spec))
    sent = sent.pin_memory() if group.device.type == "cuda" else sent

    def take() -> dict[str, torch.Tensor]:
        chunks = sent.to(group.device).chunks()
        values = step.backward(wrapped, chunks, weights, group, step_cases.autocast(arguments))
        learner.update(values)
        return values

    return take


if __name__ == "__main__":
    main()
