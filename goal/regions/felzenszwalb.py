"""Segments of like colour (Felzenszwalb and Huttenlocher 2004, scikit-image's implementation).

A fine scale finds small things, a coarse one things of several colours, so a picture is segmented at several.
"""

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects
from skimage.segmentation import felzenszwalb

from goal import config
from goal.regions import Region

# Of a grey level's 1/255: too little to move a segment, enough that no two edges weigh the same.
TIE_BREAK = 1e-9


class Felzenszwalb:
    """The source `felzenszwalb`; a region's mask is its segment."""

    def __init__(self, params: config.Felzenszwalb) -> None:
        self.params = params

    def propose(self, image: np.ndarray) -> list[Region]:
        """Tight boxes of the segments, scale by scale; image: uint8 (H, W, 3), image frame."""
        height, width = image.shape[:2]
        small = _shrink(image, self.params.max_side)
        high, wide = small.shape[:2]
        # scikit-image sorts the edges with argsort, which orders equal ones differently on different CPUs.
        distinct = small / 255.0 + TIE_BREAK * np.random.default_rng(0).random(small.shape)
        blurred = _blur(distinct, self.params.sigma)
        regions = []
        for scale in self.params.scales:
            labels = self._segments(blurred, scale)
            areas = np.bincount(labels.ravel()) / labels.size
            for area, (rows, columns) in zip(areas, find_objects(labels + 1), strict=True):
                x1, x2 = columns.start * width / wide, columns.stop * width / wide
                y1, y2 = rows.start * height / high, rows.stop * height / high
                regions.append(Region((x1, y1, x2, y2), float(area), 1.0, "felzenszwalb"))
        return regions

    def _segments(self, image: np.ndarray, scale: float) -> np.ndarray:
        """The number of each pixel's segment; image: (H, W, 3) in 0..1, blurred."""
        return felzenszwalb(image, scale=scale, sigma=0, min_size=self.params.min_size)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """scipy's gaussian_filter of an image (H, W, 3), the same bits on every processor."""
    radius = int(4 * sigma + 0.5)
    # numpy's exp differs between processors in the last bit.
    weights = np.exp(-0.5 / sigma**2 * np.arange(radius + 1.0) ** 2) if sigma else np.ones(1)
    weights = np.round(weights / (weights[0] + 2 * weights[1:].sum()) * 2**40) / 2**40
    for _ in range(2):
        height = len(image)
        padded = np.pad(image, ((radius, radius), (0, 0), (0, 0)), mode="symmetric")
        rows = [padded[start : start + height] for start in range(2 * radius + 1)]
        # Separate products and sums: a compiler that fuses them rounds once instead of twice.
        image = rows[radius] * weights[0]
        for step in range(radius, 0, -1):
            image = image + (rows[radius - step] + rows[radius + step]) * weights[step]
        image = image.swapaxes(0, 1)
    return image


def _shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """The picture with its longer side at most `max_side` pixels."""
    height, width = image.shape[:2]
    share = max_side / max(height, width)
    if share >= 1:
        return image
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
