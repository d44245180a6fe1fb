"""A training step over 1 and 2 processes of one thread each: the same whole batch, pairs a second.

    python -m benchmarks.scaling --captions captions.json        # ViT-B-16, batch 8 over all processes, gloo
    python -m benchmarks.scaling --captions captions.json --device cuda --precision bf16 --batch 128 \\
        --counts 1 2 4 8

What keeps the ratio below the number of processes: gradients are exchanged each step, and each process waits
for the one whose texts are longest.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

import torch

from benchmarks import step_cases
from goal.training import distributed, step
from goal.training.batches import Collate


def work(arguments: argparse.Namespace) -> float | None:
    """Seconds a step, median; None from all processes but the first."""
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    with distributed.group(torch.device(arguments.device), arguments.processes) as group:
        model = step_cases.network(arguments).to(group.device)
        cases = step_cases.samples(
            step_cases.random_pairs(arguments.captions, arguments.batch, model.spec), model.spec
        )
        wrapped, learner = step.wrapped(model, False, group), step_cases.learner(model, group)
        own = arguments.batch // group.world
        sent = Collate(model.spec, 0)(cases[group.rank * own : (group.rank + 1) * own])
        sent = sent.pin_memory() if group.device.type == "cuda" else sent
        autocast, times = step_cases.autocast(arguments), []
        for _ in range(arguments.steps + 1):
            began = time.perf_counter()
            chunks = sent.to(group.device).chunks()
            learner.update(step.backward(wrapped, chunks, step_cases.WEIGHTS, group, autocast))
            if group.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return median(times[1:]) if group.is_first else None


def main() -> None:
    parser = step_cases.options(__doc__, batch=8, steps=3)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="processes")
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.processes:
        seconds = work(arguments)
        if seconds:
            print(f"seconds {seconds}")
        return
    rates = {count: arguments.batch / _seconds(count) for count in arguments.counts}
    base = rates[arguments.counts[0]]
    for count, rate in rates.items():
        print(f"{count} processes: {rate:.2f} pairs a second, {rate / base:.2f}x")
    step_cases.write("scaling", arguments, {"pairs_per_second": rates})


def _seconds(count: int) -> float:
    started = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *started, "-m", "benchmarks.scaling", *sys.argv[1:], "--processes", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(output.split("seconds ")[1].split()[0])


if __name__ == "__main__":
    main()
