"""Five fixed crops: the four quadrants and the centre, half the picture's sides each (FAST-GOAL's FLISM)."""

import numpy as np

from goal.regions import Region


class Fixed:
    """The source `fixed`."""

    def propose(self, image: np.ndarray) -> list[Region]:
        """Five regions, none of a picture below 2 x 2 pixels; image: uint8 (H, W, 3), image frame."""
        height, width = image.shape[:2]
        wide, high = width // 2, height // 2
        if wide < 1 or high < 1:
            return []
        corners = [(0, 0), (width - wide, 0), (0, height - high), (width - wide, height - high)]
        corners.append(((width - wide) // 2, (height - high) // 2))
        ratio = wide * high / (width * height)
        return [
            Region((float(x), float(y), float(x + wide), float(y + high)), ratio, 1.0, "fixed")
            for x, y in corners
        ]
