"""Recall of random unit vectors in its own process: seconds and peak memory as JSON (benchmarks.evaluate)."""

import json
import resource
import sys
import time

import torch

from goal import metrics

WIDTH = 512
KS = (1, 5, 10, 50)


def main(size: int) -> None:
    rest = _peak()
    draw = torch.Generator().manual_seed(0)
    image = torch.empty(size, WIDTH)
    for row in image.split(4096):
        row.normal_(generator=draw)
        row /= row.norm(dim=1, keepdim=True)
    text = torch.empty(size, WIDTH)
    for row, of in zip(text.split(4096), image.split(4096), strict=True):
        row.normal_(0, 0.2, generator=draw)
        row += of
        row /= row.norm(dim=1, keepdim=True)
    start = time.perf_counter()
    found = metrics.recall_at_k(image, text, torch.arange(size), KS)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_gib": _peak(), "rest_gib": rest, "recall": found}))


def _peak() -> float:
    """Largest resident set so far, GiB (Linux gives KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(int(sys.argv[1]))
