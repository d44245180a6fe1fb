"""The nearest vectors of an index: in a small one all are compared, in a large one those that sketches pick.

A sketch (faiss's product quantiser, half a byte per four numbers) takes a thirty-second of its vector, and a
million are compared in milliseconds; the best CANDIDATES are compared again in half precision. Unlike cells
or a graph this works for vectors without clusters, and it is built in seconds (benchmarks/search.py).
The file is stored beside the index, named by its version, and may be deleted at any time.
Letters: P pictures, Q queries, K results, D width.
"""

import logging
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float32, Int64

from goal.errors import UserError
from goal.runtime import files
from goal.search.store import Store

log = logging.getLogger(__name__)

# Measured by benchmarks/search.py: up to here a query against all takes milliseconds.
EXACT_UP_TO = 50_000
# Of a million independent vectors, these hold 99 % of the ten nearest.
CANDIDATES = 20_000
# Numbers per code, and bits of a code.
GROUP, BITS = 4, 4
# Vectors that the codes are trained on.
SAMPLE = 50_000


class Nearest:
    """The pictures nearest to a query; made by `load`."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index
        self._sketched = isinstance(faiss.downcast_index(index.index), faiss.IndexRefine)

    def __call__(
        self, queries: Float32[np.ndarray, "Q D"], count: int
    ) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
        """Cosines and ids of up to `count` pictures, nearest first; id -1 where there are fewer."""
        # One thread: waking others takes longer than a query. The setting is per calling thread.
        faiss.omp_set_num_threads(1)
        if not self._sketched:
            return self._index.search(queries, count)
        asked = faiss.IndexRefineSearchParameters(k_factor=max(1.0, CANDIDATES / count))
        return self._index.search(queries, count, params=asked)


def load(store: Store) -> Nearest:
    """All vectors of an index, or its sketches, rebuilt where they are of another version or damaged."""
    path = _path(store)
    if path is None:
        return Nearest(exact(store))
    if path.exists():
        try:
            return Nearest(faiss.read_index(str(path)))
        except RuntimeError as error:
            log.warning("%s: damaged, built again (%s)", path, " ".join(str(error).split())[:100])
    found = sketched(store)
    try:
        _keep(found, path)
    except UserError as error:
        log.warning("%s; until then every start builds it", error)
    return Nearest(found)


def prepare(store: Store) -> None:
    """Keep the sketches of a large index, unless they are there; raises UserError where the disk refuses."""
    path = _path(store)
    if path and not path.exists():
        _keep(sketched(store), path)


def _path(store: Store) -> Path | None:
    if len(store) <= EXACT_UP_TO or store.card.width % GROUP:
        return None
    return store.place / f"sketches-{store.version()}.faiss"


def _keep(index: faiss.Index, path: Path) -> None:
    with files.atomic(path) as draft:
        # Earlier versions and what a kill left of them; another process may be writing the current one.
        for old in (*path.parent.glob("sketches-*.faiss"), *path.parent.glob(".sketches-*.tmp")):
            if not old.name.lstrip(".").startswith(path.name):
                old.unlink(missing_ok=True)
        try:
            faiss.write_index(index, str(draft))
        except RuntimeError as error:
            raise OSError(" ".join(str(error).split())) from error


def exact(store: Store) -> faiss.Index:
    """Every vector as it is."""
    index = faiss.IndexIDMap(faiss.IndexFlatIP(store.card.width))
    _add(index, store)
    return index


def sketched(store: Store) -> faiss.Index:
    """A sketch of every vector, and the vector in half precision."""
    log.info("%s: sketching %d vectors", store.place, len(store))
    width = store.card.width
    sketches = faiss.IndexPQFastScan(width, width // GROUP, BITS, faiss.METRIC_INNER_PRODUCT)
    halves = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    every = max(1, len(store) // SAMPLE)
    sketches.train(np.concatenate([vectors for _, vectors in store.vectors(every)]))
    index = faiss.IndexIDMap(faiss.IndexRefine(sketches, halves))
    _add(index, store)
    return index


def _add(index: faiss.Index, store: Store) -> None:
    for ids, vectors in store.vectors():
        index.add_with_ids(vectors, ids)
