"""The largest batch at a byte budget: ours, in chunks, with activations computed again, and the plain step.

    python -m benchmarks.memory --captions captions.json          # ViT-B-16 within 8 GiB, on a CPU
    python -m benchmarks.memory --captions captions.json --device cuda --precision bf16 --budget 24

Each way takes steps of two batches, --batch and three times that, each in a process of its own; what a pair
takes follows from the difference, and from that the batch to try. That batch is run, and made smaller until
its peak is within the budget, so that every largest batch was measured. The budget covers weights, gradients
and AdamW's state too. In chunks a pair takes little: those batches are eight times as large.
"""

import math
from typing import NamedTuple

from benchmarks import step_cases
from benchmarks.step_cases import in_a_process

MANY = 3


class Way(NamedTuple):
    """Options of benchmarks.train_step, and how much larger the batches are."""

    options: tuple[str, ...]
    larger: int = 1


WAYS = {
    "plain": Way(("--way", "plain")),
    "ours": Way(("--way", "ours")),
    "ours, activations again": Way(("--way", "ours", "--checkpoint")),
    "ours, chunks of 2": Way(("--way", "ours", "--chunk", "2"), 8),
}


def least(network: str) -> float:
    """GiB that a pair takes at least: its two pictures as bytes."""
    return 2 * 3 * step_cases.spec(network).image_size ** 2 / 2**30


def main() -> None:
    parser = step_cases.options(__doc__, batch=4, steps=1)
    parser.add_argument("--budget", type=float, default=8.0, help="GiB")
    parser.add_argument("--most", type=int, default=4096, help="pairs; larger batches are not tried")
    arguments = parser.parse_args()
    shared = ["--captions", str(arguments.captions), "--network", arguments.network, "--steps", "1"]
    shared += ["--device", arguments.device, "--precision", arguments.precision]

    def peak(way: Way, batch: int) -> float:
        return in_a_process("benchmarks.train_step", *shared, "--batch", str(batch), *way.options)["gib"]

    found = {}
    for name, way in WAYS.items():
        few = arguments.batch * way.larger
        many = few * MANY
        low, high = peak(way, few), peak(way, many)
        # What the measurement cannot tell from nothing is taken for the pictures alone.
        a_pair = max((high - low) / (many - few), least(arguments.network))
        largest = min(max(0, few + int((arguments.budget - low) / a_pair)), arguments.most)
        while largest and (measured := peak(way, largest)) > arguments.budget:
            largest = max(0, largest - math.ceil((measured - arguments.budget) / a_pair))
        found[name] = {
            "batches": [few, many],
            "gib": [low, high],
            "gib_a_pair": a_pair,
            "gib_at_rest": low - few * a_pair,
            "largest_batch": largest,
            "gib_of_largest": measured if largest else None,
        }
        print(f"{name}: {1024 * a_pair:.1f} MiB a pair, batch {largest}")
    plain = found["plain"]["largest_batch"]
    ratios = {name: values["largest_batch"] / plain for name, values in found.items()} if plain else {}
    for name, ratio in ratios.items():
        print(f"{name}, largest batch over plain's: {ratio:.1f}x")
    step_cases.write("memory", arguments, {"ways": found, "ratios": ratios})


if __name__ == "__main__":
    main()
