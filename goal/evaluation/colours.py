"""What a viewer of colours alone reaches on drawn scenes: less than that and details were not learned."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from goal.config import paths
from goal.datasets import manifest
from goal.evaluation.galleries import DIRECTIONS, Gallery


def only(data_set: str, gallery: Gallery, ks: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Every metric, in percent, of who orders pictures of the same colours at random; ks: of each direction.

    Empty for a data set without colours.parquet, and for benchmarks whose texts do not name all colours.
    """
    path = paths.manifest(data_set, "colours")
    if not path.exists() or gallery.benchmark not in ("test", "twins"):
        return {}
    if gallery.benchmark == "twins":
        share = np.mean([1.0 if attribute == "colour" else 0.5 for attribute in gallery.attributes])
        return {f"{direction}_accuracy": 100.0 * float(share) for direction in DIRECTIONS}
    rows = manifest.read_table(path, manifest.COLOURS).to_pylist()
    seen = {row["id"]: (row["background"], tuple(sorted(row["colours"]))) for row in rows}
    alike = Counter(seen[name] for name in gallery.ids)
    sizes = np.array([alike[seen[name]] for name in gallery.ids])
    return {
        f"{direction}_r{k}": 100.0 * float(np.minimum(k / sizes, 1).mean())
        for direction in DIRECTIONS
        for k in ks[direction]
    }
