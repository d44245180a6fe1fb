"""Search at scale: time to build an index and to answer a query, and what an approximate one finds.

    python -m benchmarks.search                 # all sizes and vectors: Markdown, and results/search.json
    python -m benchmarks.search --sizes 10000   # some of them
    python -m benchmarks.search --others --sizes 100000    # faiss's inverted file and graph (HNSW) too

The others get as much time for a query as the sketches took for the same vectors: they search the most cells
or candidates (the column `effort`) with which the median stays within it.

| vectors | what they are |
|---|---|
| clustered | unit vectors, 512 wide, 100 around each centre at a cosine near 0.8: pictures alike |
| random | independent unit vectors: the worst case for an approximate index, nothing is near anything |

A query is a vector of the index with noise, cosine near 0.9; its time is the median of 100, on one thread.
recall@10: the share of the ten nearest (all vectors compared) that the index finds. Each row is a process of
its own, whose peak memory is read at its end.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from benchmarks import figures
from goal.search import ann, store
from goal.search.store import Card, Entry, Stamp

WIDTH, QUERIES, NEAREST = 512, 100, 10
BLOCK = 10_000
SIZES = (10_000, 50_000, 100_000, 1_000_000)
KINDS = ("clustered", "random")
A_CLUSTER = 100
OTHERS_UP_TO = 100_000
COLUMNS = ("index", "vectors", "size", "effort", "build s", "load s", "ms a query", "recall@10", "peak GiB")
# What makes an index of faiss search longer and find more.
EFFORTS = {"cells": "nprobe", "graph": "efSearch"}
RESULTS = Path("benchmarks/results")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="vectors")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        index, kind, size, limit = arguments.one
        print(json.dumps(measure(index, kind, int(size), float(limit))))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = []
    for size in arguments.sizes:
        for kind in arguments.kinds:
            # Comparing with all takes the same time whatever the vectors.
            indexes = ["exact"] if kind == arguments.kinds[0] else []
            indexes += ["sketches"] if size > BLOCK else []
            indexes += ["cells", "graph"] if arguments.others and BLOCK < size <= OTHERS_UP_TO else []
            limit = math.inf
            for index in indexes:
                rows.append([index, kind, f"{size:,}", *_in_its_process(index, kind, size, limit)])
                if index == "sketches":
                    limit = float(rows[-1][COLUMNS.index("ms a query")])
                print(f"| {' | '.join(rows[-1])} |", flush=True)
    measured = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    file = RESULTS / ("search_others.json" if arguments.others else "search.json")
    content = {"origin": figures.origin(), "rows": measured}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measure(index: str, kind: str, size: int, limit: float) -> list[str]:
    """A row of the table from `effort` on; limit: milliseconds a query, for those that have an effort."""
    with tempfile.TemporaryDirectory() as folder:
        kept = store.create(Path(folder), Card("/pictures", "random", "0" * 64, "none", WIDTH))
        for start in range(0, size, BLOCK):
            block = vectors(kind, start)
            names = (f"{number:07d}.jpg".encode() for number in range(start, start + BLOCK))
            kept.change([Entry(name, Stamp(1, 1), row) for name, row in zip(names, block, strict=True)], [])
        start = time.perf_counter()
        if index == "exact":
            build = 0.0
        else:
            faiss.write_index(INDEXES[index](kept), f"{folder}/built")
            build = time.perf_counter() - start
        start = time.perf_counter()
        built = ann.exact(kept) if index == "exact" else faiss.read_index(f"{folder}/built")
        load = time.perf_counter() - start
        queries = asked(kind, size)
        if index in EFFORTS:
            effort, found, spent = within(built, EFFORTS[index], queries, limit)
        else:
            effort, (found, spent) = "all" if index == "exact" else ann.CANDIDATES, answers(built, queries)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        hits = np.mean([len(np.intersect1d(*pair)) for pair in zip(found, truth(kept, queries), strict=True)])
    share = f"{hits / NEAREST:.3f}"
    return [str(effort), f"{build:.0f}", f"{load:.1f}", f"{spent:.1f}", share, f"{peak:.1f}"]


def answers(index: faiss.Index, queries: np.ndarray) -> tuple[list[np.ndarray], float]:
    """The ids that each query finds, and the median of their milliseconds."""
    nearest = ann.Nearest(index)
    nearest(queries[:1], NEAREST)
    found, times = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(nearest(query[None], NEAREST)[1][0])
        times.append(time.perf_counter() - start)
    return found, 1000 * float(np.median(times))


def within(
    index: faiss.Index, effort: str, queries: np.ndarray, limit: float
) -> tuple[int, list[np.ndarray], float]:
    """The largest effort (a power of 2, up to all vectors) within `limit` ms a query, and its answers."""
    best = None
    for value in (2**power for power in range(4, 1 + math.ceil(math.log2(index.ntotal)))):
        faiss.ParameterSpace().set_index_parameter(index, effort, value)
        found, spent = answers(index, queries)
        if best is not None and spent > limit:
            break
        best = value, found, spent
    return best


def vectors(kind: str, start: int) -> np.ndarray:
    """Rows start to start + BLOCK of the vectors."""
    draw = np.random.default_rng([1, start])
    rows = draw.standard_normal((BLOCK, WIDTH), np.float32)
    if kind == "clustered":
        # Centre and noise of like length would lie at a cosine of 0.7.
        centres = np.random.default_rng([2, start]).standard_normal((BLOCK // A_CLUSTER, WIDTH), np.float32)
        rows = 0.75 * rows + np.repeat(centres, A_CLUSTER, axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def asked(kind: str, size: int) -> np.ndarray:
    """Queries: vectors of blocks all over the index, with noise."""
    draw = np.random.default_rng(3)
    starts = np.linspace(0, size - BLOCK, 10).astype(int) // BLOCK * BLOCK
    rows = np.concatenate([vectors(kind, start)[:: BLOCK // (QUERIES // 10)] for start in starts])[:QUERIES]
    noise = draw.standard_normal(rows.shape, np.float32)
    rows = rows + 0.48 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def truth(kept: store.Store, queries: np.ndarray) -> np.ndarray:
    """Ids of the nearest by comparing with all, block by block."""
    best = np.full((QUERIES, NEAREST), -np.inf, np.float32)
    ids = np.zeros((QUERIES, NEAREST), np.int64)
    for numbers, block in kept.vectors():
        scores = np.concatenate([best, queries @ block.T], axis=1)
        both = np.concatenate([ids, np.broadcast_to(numbers, (QUERIES, len(numbers)))], axis=1)
        order = np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST]
        best, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(both, order, 1)
    return ids


def cells(kept: store.Store) -> faiss.Index:
    """faiss's inverted file, for comparison: 2 sqrt(P) cells."""
    count = 2 * math.isqrt(len(kept))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(WIDTH), WIDTH, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    sample = kept.vectors(max(1, len(kept) // (40 * count)))
    index.train(np.concatenate([vectors for _, vectors in sample]))
    return _filled(index, kept)


def graph(kept: store.Store) -> faiss.Index:
    """faiss's HNSW, for comparison: 32 links a vector."""
    index = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    return _filled(index, kept)


def _filled(index: faiss.Index, kept: store.Store) -> faiss.Index:
    index = faiss.IndexIDMap(index)
    for ids, block in kept.vectors():
        index.add_with_ids(block, ids)
    return index


def _in_its_process(*one: object) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.search", "--one", *map(str, one)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


INDEXES = {"sketches": ann.sketched, "cells": cells, "graph": graph}

if __name__ == "__main__":
    main()
