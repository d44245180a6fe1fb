"""What the benchmarks of the training step share: options, made-up pairs, a learner, a clock, results."""

import argparse
import itertools
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import figures
from goal import boxes, config
from goal.model.architectures import spec_of
from goal.model.network import GoalClip, Spec
from goal.text import split_sentences, tokenize
from goal.training.distributed import Group
from goal.training.examples import LocalPair, Sample
from goal.training.learner import Learner

WEIGHTS = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}
# With every term and margin that the objective offers besides.
ALL_TERMS = WEIGHTS | {
    "hard_negative": 0.5,
    "local_hard_negative": 0.5,
    "sentence_patches": 1.0,
    "attention_temperature": 0.1,
    "late_interaction": 1.0,
}
CONTEXT = 248
RESULTS = Path("benchmarks/results")
# More than any benchmark takes.
STEPS = 100_000


def options(description: str | None, batch: int, steps: int) -> argparse.ArgumentParser:
    """The options that every benchmark of the step has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", required=True, type=Path)
    parser.add_argument("--network", default="ViT-B-16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=batch, help="pairs, over all processes")
    parser.add_argument("--steps", type=int, default=steps, help="timed ones; their median counts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/, by what was measured")
    return parser


def write(name: str, arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Keep a result beside its settings, under a name that other settings do not overwrite."""
    case = (arguments.network, arguments.device, arguments.precision, str(arguments.batch))
    file = arguments.out or RESULTS / f"{'-'.join((name, *case))}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    hidden = ("out", "way", "processes")
    kept = {key: value for key, value in vars(arguments).items() if key not in hidden}
    # Of files their names: where they lie says nothing to others.
    settings = {key: value.name if isinstance(value, Path) else str(value) for key, value in kept.items()}
    where = {"origin": figures.origin(), "machine": machine(arguments.device)}
    file.write_text(json.dumps({"settings": settings, **where, **found}, indent=1) + "\n")


def machine(device: str) -> str:
    """What computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def in_a_process(module: str, *words: str) -> Any:
    """What `python -m module words...` says as JSON on its last line."""
    command = [sys.executable, "-m", module, *words]
    # Its errors are shown where they come.
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def spec(network: str) -> Spec:
    """A network with room for long captions."""
    return replace(spec_of(network), context_length=CONTEXT)


def network(arguments: argparse.Namespace, kind: type[GoalClip] = GoalClip) -> GoalClip:
    """Random weights, the same in every process."""
    torch.manual_seed(0)
    return kind(spec(arguments.network)).to(arguments.device)


def autocast(arguments: argparse.Namespace) -> Callable[[], AbstractContextManager[None]]:
    """As goal.training.plan has it."""
    kind = torch.device(arguments.device).type
    return lambda: torch.autocast(kind, torch.bfloat16) if arguments.precision == "bf16" else nullcontext()


def learner(model: GoalClip, group: Group, weights: dict[str, float] = WEIGHTS) -> Learner:
    """The training's own optimizer and bookkeeping, by the paper's recipe."""
    recipe = {"lr": 5e-6, "weight_decay": 0.05, "warmup_steps": 0, "clip_norm": 0.0}
    return Learner(model, config.load().stage2.model_copy(update=recipe), weights, STEPS, group)


def random_pairs(file: Path, count: int, spec: Spec) -> list[dict[str, Any]]:
    """Captions of a file, the second sentence of each, and random views, crops and boxes."""
    draw = torch.Generator().manual_seed(1)
    side = spec.image_size
    pairs = []
    for caption in captions(file, count):
        corner = torch.randint(0, side // 2, (2,), generator=draw).tolist()
        views = torch.randint(256, (2, 3, side, side), generator=draw, dtype=torch.uint8)
        box = (*corner, corner[0] + side // 3, corner[1] + side // 3)
        sentence = split_sentences(caption)[1]
        pairs.append(
            {"caption": caption, "sentence": sentence, "whole": views[0], "crop": views[1], "box": box}
        )
    return pairs


def texts(file: Path) -> list[str]:
    """The captions of a file: a list of texts, or of records with a `caption` each."""
    records = json.loads(file.read_text(encoding="utf-8"))
    return [record if isinstance(record, str) else record["caption"] for record in records]


def captions(file: Path, count: int) -> list[str]:
    """The first captions of three sentences or more, in turn again where they are too few."""
    long = []
    for text in texts(file):
        if len(long) < count and len(split_sentences(text)) > 2:
            long.append(text)
    return [long[number % len(long)] for number in range(count)]


def samples(pairs: Sequence[dict[str, Any]], spec: Spec) -> list[Sample]:
    """The pairs as training takes them, tokenised once."""
    found = []
    for pair in pairs:
        tokens = tokenize(pair["caption"], [pair["sentence"]], CONTEXT)
        patches = boxes.patch_mask(pair["box"], spec.image_size, spec.patch_size)
        sentence = tokenize(pair["sentence"].text, [], CONTEXT).ids
        local = LocalPair(pair["crop"], sentence, patches, tokens.spans[0])
        found.append(Sample(pair["whole"], tokens.ids, [local], None))
    return found


class Laps:
    """Seconds between marks, by the clock of the device, which is not waited for at a mark."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._laps: list[list[tuple[str, Any]]] = []

    def begin(self) -> None:
        """Begin a lap."""
        self._laps.append([])
        self.mark("")

    def mark(self, name: str) -> None:
        """End the stage `name`, which began at the mark before."""
        if self._gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._laps[-1].append((name, now))

    def take(self) -> list[dict[str, float]]:
        """The laps so far, stage by stage; waits for the device."""
        if self._gpu:
            torch.cuda.synchronize()
        found = [
            {name: self._between(before, after) for (_, before), (name, after) in itertools.pairwise(lap)}
            for lap in self._laps
        ]
        self._laps.clear()
        return found

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1000 if self._gpu else after - before


def peak_gib(device: str) -> float:
    """The most memory that this process took: on a GPU the tensors there, else all of it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
