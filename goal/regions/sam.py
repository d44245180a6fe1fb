"""Regions from SAM's automatic masks (paper, section 3.1): a box and an area for each mask.

Frames: `image` as elsewhere; `input` is the picture scaled to SAM's side S and padded right and below to a
square; `logits` is a quarter of that.
Letters: K masks; H, W the picture's sides; C width of the embedding.
"""

from collections.abc import Iterator

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import batched_nms

from goal import config
from goal.errors import UserError
from goal.regions import Region, sam_measure, sam_weights
from goal.regions.sam_decoder import Masks, Picture
from goal.regions.sam_encoder import encode
from goal.runtime import devices

# A point's patches take 4 MB: more points at once leave a CPU's cache and are no faster.
CPU_POINTS = 4
# Pruning skips a point that lies in the smallest masks of so many others; fewer lose more boxes.
EXPLAINED = 3
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def source(params: config.Sam, device: str, worker: int = 0) -> "Fast | Package":
    """The source `sam` with the weights that params name; device, worker: as in goal.runtime.devices.resolve.

    Raises UserError where the weights or the device cannot be had, or the device lacks the precision.
    """
    place = devices.resolve(device, "regions.device", worker)
    if params.precision == "fp16" and place.type == "cpu":
        raise UserError("params.yaml: regions.sam.precision: fp16 needs a GPU; set it to auto, fp32 or bf16")
    if params.precision == "bf16" and not devices.has_bf16(place):
        other = "auto, fp16 or fp32" if place.type == "cuda" else "auto or fp32"
        raise UserError(
            f"params.yaml: regions.sam.precision: bf16, which this {place.type} device lacks; set {other}"
        )
    network = sam_weights.load(params).to(place)
    return Fast(network, params) if params.fast else Package(network, params)


class Fast:
    """The package's boxes without its full-size masks."""

    def __init__(self, network: Sam, params: config.Sam) -> None:
        """The network's weights become params.precision."""
        self.network = network
        self.params = params
        self.on_cpu = network.device.type == "cpu"
        self.dtype = _dtype(params.precision, network.device)
        network.image_encoder.to(self.dtype)
        # A handful of layers whose squares leave fp16's range.
        network.image_encoder.neck.float()
        network.mask_decoder.to(self.dtype)
        self.resize = ResizeLongestSide(network.image_encoder.img_size)
        self.grid = build_point_grid(params.points_per_side)
        self.order = (
            _coarse_to_fine(params.points_per_side) if params.prune_points else np.arange(len(self.grid))
        )

    @torch.inference_mode()
    def propose(self, images: list[np.ndarray]) -> list[list[Region]]:
        """Regions of each picture, surest first; images: uint8 (H, W, 3), image frame.

        There are none where SAM finds nothing, nor in a picture so long and thin that SAM's input has no row
        for it.
        """
        # Several pictures at once do not speed a CPU up, and would leave their traces in the last digits.
        size = 1 if self.on_cpu else self.params.batch_size
        usable = [index for index, image in enumerate(images) if _fits(self.resize, image)]
        regions: list[list[Region]] = [[] for _ in images]
        for start in range(0, len(usable), size):
            batch = usable[start : start + size]
            pixels = torch.stack([self.prepare(images[index]) for index in batch])
            for index, embedding in zip(batch, encode(self.network.image_encoder, pixels), strict=True):
                regions[index] = self._regions(images[index].shape[:2], embedding.to(self.dtype))
        return regions

    def prepare(self, image: np.ndarray) -> Tensor:
        """The picture as SAM's input (3, S, S)."""
        scaled = torch.from_numpy(self.resize.apply_image(image)).permute(2, 0, 1)
        return self.network.preprocess(scaled.to(self.network.device)).to(self.dtype)

    def _regions(self, size: tuple[int, int], embedding: Tensor) -> list[Region]:
        """Regions of a picture of size (H, W) from its embedding (C, S / 16, S / 16)."""
        padded = self.resize.target_length
        frame = sam_measure.frame(
            size, _input_size(self.resize, size), 4 * embedding.shape[-1], padded, embedding.device
        )
        parts = []
        for masks, area in self._masks(size, embedding, frame):
            boxes, found = sam_measure.boxes(masks.logits, frame, self.network.mask_threshold)
            parts.append(torch.column_stack([boxes, area, masks.quality])[found])
        measured = torch.cat(parts)
        boxes, quality = measured[:, :4], measured[:, 5]
        kept = batched_nms(boxes, quality, torch.zeros_like(quality), self.params.box_nms_threshold)
        return [_region(*row) for row in measured[kept].tolist()]

    def _masks(
        self, size: tuple[int, int], embedding: Tensor, frame: sam_measure.Frame
    ) -> Iterator[tuple[Masks, Tensor]]:
        """Good and stable masks of the grid's points, some points at a time, and their area ratios (K,)."""
        picture = Picture(self.network, embedding)
        points = torch.from_numpy(self.resize.apply_coords(self.grid * size[::-1], size)).to(embedding.device)
        pending = torch.from_numpy(self.order).to(embedding.device)
        explained = torch.zeros(len(points), dtype=torch.int, device=embedding.device)
        step = min(self.params.points_per_batch, CPU_POINTS) if self.on_cpu else self.params.points_per_batch
        threshold = self.network.mask_threshold
        while len(pending):
            batch, pending = pending[:step], pending[step:]
            masks = picture.masks(points[batch], self.params.pred_iou_threshold)
            stable = sam_measure.stable(masks.logits, frame, threshold, self.params.stability_threshold)
            masks = Masks(masks.logits[stable], masks.quality[stable], masks.point[stable])
            area = sam_measure.area_ratio(masks.logits, frame, threshold)
            yield masks, area
            if self.params.prune_points:
                inner = masks.logits[_smallest(masks.point, area, len(batch))] > threshold
                column, row = (points * (inner.shape[-1] / frame.padded)).long().T
                explained += inner[:, row, column].sum(dim=0)
                pending = pending[explained[pending] < EXPLAINED]


class Package:
    """The package's own mask generator: the reference for Fast."""

    def __init__(self, network: Sam, params: config.Sam) -> None:
        self.resize = ResizeLongestSide(network.image_encoder.img_size)
        self.generator = SamAutomaticMaskGenerator(
            network,
            points_per_side=params.points_per_side,
            points_per_batch=params.points_per_batch,
            pred_iou_thresh=params.pred_iou_threshold,
            stability_score_thresh=params.stability_threshold,
            box_nms_thresh=params.box_nms_threshold,
            output_mode="uncompressed_rle",
        )

    def propose(self, images: list[np.ndarray]) -> list[list[Region]]:
        """As Fast.propose."""
        return [self._regions(image) if _fits(self.resize, image) else [] for image in images]

    def _regions(self, image: np.ndarray) -> list[Region]:
        pixels = image.shape[0] * image.shape[1]
        regions = []
        for mask in self.generator.generate(image):
            x, y, width, height = mask["bbox"]
            regions.append(_region(x, y, x + width, y + height, mask["area"] / pixels, mask["predicted_iou"]))
        return regions


def _region(x1: float, y1: float, x2: float, y2: float, area_ratio: float, quality: float) -> Region:
    """A region from the package's box, whose x2 and y2 are the last column and row."""
    return Region((x1, y1, x2 + 1, y2 + 1), area_ratio, min(max(quality, 0.0), 1.0), "sam")


def _input_size(resize: ResizeLongestSide, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels that a picture of size (H, W) fills in SAM's input."""
    return resize.get_preprocess_shape(*size, resize.target_length)


def _fits(resize: ResizeLongestSide, image: np.ndarray) -> bool:
    return min(_input_size(resize, image.shape[:2])) > 0


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16 if devices.has_bf16(device) else torch.float16
    return PRECISIONS["fp32" if precision == "auto" else precision]


def _coarse_to_fine(side: int) -> np.ndarray:
    """Rows of the point grid, every 2^k-th of both directions before the rest, each level shuffled.

    Spread like this, the first points meet most things, and their masks explain the points that follow.
    """
    index = np.arange(side)
    # The largest power of two that divides the index.
    stride = np.where(index == 0, side, index & -index)
    level = np.minimum.outer(stride, stride).ravel()
    shuffled = np.random.default_rng(0).permutation(side * side)
    return shuffled[np.argsort(-level[shuffled], kind="stable")]


def _smallest(point: Tensor, area: Tensor, points: int) -> Tensor:
    """Which masks (K,) are the smallest of their point (K,).

    A point inside another one's smallest mask would give the same masks again; inside a larger one it may
    show a part of its own.
    """
    least = torch.full((points,), torch.inf, device=area.device).scatter_reduce(0, point, area, "amin")
    return area == least[point]
