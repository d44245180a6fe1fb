"""Whether a long training keeps pace and memory: 1,000 steps of stage 2 or more (whole epochs), by tenths.

    dvc repro pairs train@stage1            # what stage 2 starts from
    python -m benchmarks.steady             # batch 4, so that a thousand steps take minutes on two cores

The training is the pipeline's own, in a temporary project that borrows this one's data, pairs and weights.
"""

import argparse
import contextlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import psutil

from benchmarks import figures
from goal import config
from goal.config import paths
from goal.datasets import manifest
from goal.stages import train
from goal.training.progress import Silent

BORROWED = ("data", "pairs", "models/stage1")
PARTS = 10


class Watch(Silent):
    """Notes pace and resident memory wherever the training tells its losses."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "samples_per_second" in metrics:
            mib = psutil.Process().memory_info().rss / 2**20
            self.rows.append({"step": step, "pace": metrics["samples_per_second"], "mib": mib})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/steady.json"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    params = config.load()
    pictures = len(manifest.read(paths.manifest(params.data.name, "train")))
    epochs = math.ceil(arguments.steps / (pictures // arguments.batch))
    stage = {"batch_size": arguments.batch, "epochs": epochs, "validate_epochs": epochs}
    params = params.model_copy(
        update={
            "stage2": params.stage2.model_copy(update=stage),
            "train": params.train.model_copy(update={"log_every": 10}),
        }
    )
    watch, here = Watch(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in BORROWED:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).symlink_to(here / name)
        train.run(params, "stage2", watch)
    size = len(watch.rows) // PARTS
    parts = [watch.rows[first : first + size] for first in range(0, size * PARTS, size)]
    found = [{name: median(row[name] for row in part) for name in ("step", "pace", "mib")} for part in parts]
    for part in found:
        print(f"step {part['step']:.0f}: {part['pace']:.1f} samples/s, {part['mib']:.0f} MiB")
    # The first tenth warms up.
    settled = found[1:]
    print(f"pace, last over second: {settled[-1]['pace'] / settled[0]['pace']:.2f}")
    print(f"memory, last less second: {settled[-1]['mib'] - settled[0]['mib']:.0f} MiB")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"origin": figures.origin(), "tenths": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
