"""The nearest vectors of an index: exact where all of them are soon compared, else faiss's inverted file.

The inverted file sorts vectors into cells and compares a query with those of the nearest cells. It lies
beside the index, named by its version, and may be lost at any time. Letters: P pictures, Q queries, K
results, D width.
"""

import logging
import math
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from goal import files
from goal.search.store import Store

log = logging.getLogger(__name__)

# Measured by benchmarks/search.py, see docs/search.md: up to here a query against all takes milliseconds.
EXACT_UP_TO = 50_000
# Cells a query looks into, of CELLS * sqrt(P).
CELLS = 2
PROBES = 64
# Vectors a cell, to find the cells' centres.
SAMPLE = 40


class Nearest:
    """The pictures nearest to a query; made by `load`."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index

    def __call__(
        self, queries: Float32[np.ndarray, "Q D"], count: int
    ) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
        """Cosines and ids of up to `count` pictures, nearest first; id -1 where there are fewer."""
        # One thread: a query is little work, and waking others takes longer than it. Each thread has its own.
        faiss.omp_set_num_threads(1)
        return self._index.search(queries, count)


def load(store: Store) -> Nearest:
    """All vectors of an index, or its inverted file, made anew where the index changed."""
    if len(store) <= EXACT_UP_TO:
        return Nearest(exact(store))
    return Nearest(faiss.read_index(str(prepare(store))))


def prepare(store: Store) -> Path | None:
    """Make the inverted file of a large index, unless it is there; returns where, None for a small index."""
    if len(store) <= EXACT_UP_TO:
        return None
    path = store.place / f"cells-{store.version()}.faiss"
    if not path.exists():
        log.info("%s: sorting %d vectors into cells", store.place, len(store))
        found = approximate(store)
        for old in store.place.glob("cells-*.faiss"):
            old.unlink(missing_ok=True)
        with files.atomic(path) as draft:
            faiss.write_index(found, str(draft))
    return path


def exact(store: Store) -> faiss.Index:
    """Every vector as it is."""
    index = faiss.IndexIDMap(faiss.IndexFlatIP(store.card.width))
    _add(index, store)
    return index


def approximate(store: Store) -> faiss.Index:
    """Vectors in half precision, in cells around centres that a sample of them gave."""
    width, count = store.card.width, len(store)
    cells = CELLS * math.isqrt(count)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = PROBES
    index.train(np.concatenate([vectors for _, vectors in store.vectors(max(1, count // (cells * SAMPLE)))]))
    _add(index, store)
    return index


def _add(index: faiss.Index, store: Store) -> None:
    for ids, vectors in store.vectors():
        index.add_with_ids(vectors, ids)
