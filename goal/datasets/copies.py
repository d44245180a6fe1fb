"""Pictures that show the same, so that no copy of a training picture is tested."""

from collections.abc import Hashable, Sequence

import numpy as np

from goal.datasets.folder_rows import Usable

NEAREST = 8  # pictures looked at beside each, itself included


def first_alike(found: Sequence[Usable], levels: int) -> dict[str, str]:
    """For the id of each picture that of the first one, in the given order, that shows the same.

    levels: by how much (of 255) the thumbnails of two pictures may differ anywhere; 0: only copies of a file
    count. A chain of pictures, each like the next (the frames of a film), is one group.
    """
    labels: Sequence[Hashable] = [(one.row.digest, one.thumbnail) for one in found]
    if levels and found:
        thumbnails = list(dict.fromkeys(one.thumbnail for one in found))
        group = dict(zip(thumbnails, _groups(thumbnails, levels), strict=True))
        labels = [group[one.thumbnail] for one in found]
    first: dict[Hashable, str] = {}
    return {one.row.id: first.setdefault(label, one.row.id) for one, label in zip(found, labels, strict=True)}


def _groups(thumbnails: list[bytes], levels: int) -> list[int]:
    """The number of the group of each thumbnail (8 * 8 * 3 bytes)."""
    # SciPy takes a second to import, and only own pictures are compared.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    fine = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), 4, 2, 4, 2, 3)
    # Means over 2 x 2 pixels differ by no more than the pixels, and make a smaller tree.
    coarse = fine.mean(axis=(2, 4)).reshape(len(thumbnails), -1)
    # The nearest of a picture are enough: through them it is joined with the others. The bound is exclusive.
    _, nearest = KDTree(coarse).query(coarse, NEAREST, p=np.inf, distance_upper_bound=levels + 1)
    one, place = np.nonzero(nearest < len(thumbnails))
    other = nearest[one, place]
    differ = np.abs(fine[one].astype(np.int16) - fine[other]).max(axis=(1, 2, 3, 4, 5))
    one, other = one[differ <= levels], other[differ <= levels]
    size = (len(thumbnails), len(thumbnails))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=size)
    return connected_components(graph, directed=False)[1].tolist()
