"""A large gallery is measured in blocks, without a matrix of all similarities."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

# Pictures, and as many texts. All their similarities in single precision would take 576 MB.
COUNT = 12_000
LIMIT = 300 * 2**20  # bytes
# Runs in a process of its own, to measure its peak memory alone.
PROGRAM = """
import re, sys, torch
from goal.evaluation import ranking
from goal.evaluation.embed import EmbeddingTable
from goal.evaluation.galleries import Gallery, Picture
from tests import tiny

count = int(sys.argv[1])
pictures = tuple(Picture(str(number)) for number in range(count))
texts = tuple(f"text {number}" for number in range(count))
draw = torch.Generator().manual_seed(0)
image = torch.randn(count, 8, generator=draw)
places = {picture: place for place, picture in enumerate(pictures)}, {one: p for p, one in enumerate(texts)}
tokens = torch.ones(count, dtype=torch.long)
embeddings = EmbeddingTable(image, image.clone(), tokens, *places, {}, tiny.SPEC, "")

def peak():
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])

before = peak()
for benchmark in ("test", "joint"):
    gallery = Gallery(benchmark, pictures, tuple(map(str, range(count))), texts, tuple(range(count)))
    rows = ranking.measure(gallery, embeddings, chunk=1024)
    assert rows.num_rows == 2 * count
    # Every picture has the same vector as its text, and finds it first.
    assert benchmark == "joint" or set(rows["rank"].to_pylist()) == {1}
sys.stdout.write(str(peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory counters of Linux")
def test_all_similarities_at_once_would_not_fit() -> None:
    command = [sys.executable, "-c", PROGRAM, str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tiny.ROOT)
    assert int(done.stdout) < LIMIT
