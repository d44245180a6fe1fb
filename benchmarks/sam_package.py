"""The package's own mask generator as a source of regions: the reference for goal.regions.sam."""

import numpy as np
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from goal import config
from goal.regions import Region


class Package:
    """The package's boxes, by its own code."""

    def __init__(self, network: Sam, params: config.Sam) -> None:
        self.generator = SamAutomaticMaskGenerator(
            network,
            points_per_side=params.points_per_side,
            points_per_batch=params.points_per_batch,
            pred_iou_thresh=params.pred_iou_threshold,
            stability_score_thresh=params.stability_threshold,
            box_nms_thresh=params.box_nms_threshold,
            output_mode="uncompressed_rle",
        )

    def propose(self, image: np.ndarray) -> list[Region]:
        """As goal.regions.sam.MaskGenerator.propose."""
        regions = []
        for mask in self.generator.generate(image):
            x, y, width, height = mask["bbox"]
            area = mask["area"] / image[..., 0].size
            regions.append(
                Region((x, y, x + width + 1, y + height + 1), area, min(mask["predicted_iou"], 1.0), "sam")
            )
        return regions
