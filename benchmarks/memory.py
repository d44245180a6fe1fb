"""The largest batch at a byte budget: ours, in chunks, with activations computed again, and the plain step.

    python -m benchmarks.memory --captions captions.json          # ViT-B-16 within 8 GiB, on a CPU
    python -m benchmarks.memory --captions captions.json --device cuda --budget 24

Each way takes steps of a few small batches, each in a process of its own; what a pair takes follows from the
difference, and the largest batch from that. The budget covers weights, gradients and AdamW's state too.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.train_step import options

WAYS = {
    "plain": ("--way", "plain"),
    "ours": ("--way", "ours"),
    "ours, activations again": ("--way", "ours", "--checkpoint"),
    "ours, chunks of 2": ("--way", "ours", "--chunk", "2"),
}


def peak(way: str, batch: int, arguments: argparse.Namespace) -> float:
    """GiB of one step."""
    command = [
        *(sys.executable, "-m", "benchmarks.train_step", "--captions", str(arguments.captions)),
        *("--network", arguments.network, "--device", arguments.device, "--precision", arguments.precision),
        *("--batch", str(batch), "--steps", "1", *WAYS[way]),
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)["gib"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--budget", type=float, default=8.0, help="GiB")
    parser.add_argument("--batches", type=int, nargs=2, default=[4, 12], help="that are measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    arguments = parser.parse_args()
    few, many = arguments.batches
    found = {}
    for way in WAYS:
        low, high = peak(way, few, arguments), peak(way, many, arguments)
        a_pair = (high - low) / (many - few)
        found[way] = {
            "gib_a_pair": a_pair,
            "gib_at_rest": low - few * a_pair,
            "largest_batch": int((arguments.budget - low) / a_pair) + few,
        }
        largest, plain = found[way]["largest_batch"], found["plain"]["largest_batch"]
        print(f"{way}: {1024 * a_pair:.0f} MiB a pair, batch {largest}, {largest / plain:.1f}x")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"network": arguments.network, "device": arguments.device, "budget_gib": arguments.budget}
    arguments.out.write_text(json.dumps(result | {"ways": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
