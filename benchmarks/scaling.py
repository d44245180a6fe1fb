"""A training step over 1 and 2 processes of one thread each: the same whole batch, pairs a second.

    python -m benchmarks.scaling --captions captions.json        # ViT-B-16, batch 8 over all processes, gloo
    python -m benchmarks.scaling --captions captions.json --device cuda --batch 128 --counts 1 2 4 8

What keeps the ratio below the number of processes: gradients are exchanged each step, and each process waits
for the one whose texts are longest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.train_step import CONTEXT, WEIGHTS, options, random_pairs, samples
from goal.model.architectures import spec_of
from goal.model.network import GoalClip, Spec
from goal.training import distributed, step
from goal.training.batches import Collate
from goal.training.learner import optimizer


def work(arguments: argparse.Namespace) -> float | None:
    """Seconds a step, median; None from all processes but the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = Spec(**{**vars(spec_of(arguments.network)), "context_length": CONTEXT})
    everything = samples(random_pairs(arguments.captions, arguments.batch, spec), spec)
    with distributed.group(torch.device(arguments.device), arguments.processes) as group:
        model = GoalClip(spec).to(group.device)
        wrapped = DistributedDataParallel(model) if group.world > 1 else model
        own = arguments.batch // group.world
        sent = Collate(spec, 0)(everything[group.rank * own : (group.rank + 1) * own])
        chunks = sent.to(group.device).chunks()
        adamw, times = optimizer(model, 5e-6, 0.05), []
        for _ in range(arguments.steps + 1):
            began = time.perf_counter()
            step.backward(wrapped, chunks, WEIGHTS, group, nullcontext)
            adamw.step()
            adamw.zero_grad()
            if group.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return median(times[1:]) if group.first else None


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="pairs over all processes")
    parser.add_argument("--steps", type=int, default=3, help="timed ones; their median counts")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="processes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.processes:
        seconds = work(arguments)
        if seconds:
            print(f"seconds {seconds}")
        return
    found = {count: arguments.batch / _seconds(count) for count in arguments.counts}
    base = found[arguments.counts[0]]
    for count, rate in found.items():
        print(f"{count} processes: {rate:.2f} pairs a second, {rate / base:.2f}x")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"network": arguments.network, "batch": arguments.batch, "pairs_per_second": found}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _seconds(count: int) -> float:
    started = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *started, "-m", "benchmarks.scaling", *sys.argv[1:], "--processes", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(told.split("seconds ")[1].split()[0])


if __name__ == "__main__":
    main()
