"""Regions from SAM's automatic masks (paper, section 3.1): a box and an area for each mask.

The boxes are those of the package's SamAutomaticMaskGenerator, which scales every mask to the picture before
it filters them; here a mask that fails the quality filter is never scaled, and no mask is kept.

Letters: K masks; H, W the picture's sides; C width of the embedding; S side of SAM's input, which holds the
picture scaled to a longer side of S and padded right and below.
"""

from collections.abc import Iterator

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import nms

from goal import config
from goal.errors import UserError
from goal.regions import Region, sam_weights
from goal.runtime import devices

# The package's: a mask is stable if thresholds this far above and below its own change its area little.
STABILITY_OFFSET = 1.0
# A point's patches take 4 MB: more points at once leave a CPU's cache and are slower.
CPU_POINTS = 4
# Pixels of masks scaled to the picture at once: few fit a CPU's cache, many keep a GPU busy.
PIXELS = {"cpu": 2**22, "cuda": 2**26}
# Pruning skips a point that lies in the smallest masks of so many others; fewer lose more boxes.
EXPLAINED = 3


def source(params: config.Sam, device: str, worker: int = 0) -> "MaskGenerator":
    """The source `sam` with the weights that params name; device, worker: as in goal.runtime.devices.resolve.

    Raises UserError if the weights or the device are missing, or the device lacks the precision.
    """
    place = devices.resolve(device, "regions.device", worker)
    has = {"auto": True, "fp32": True, "bf16": devices.has_bf16(place), "fp16": place.type == "cuda"}
    if not has[params.precision]:
        raise UserError(
            f"params.yaml: regions.sam.precision: this {place.type} device has no {params.precision};"
            " set auto or fp32"
        )
    return MaskGenerator(sam_weights.load(params).to(place), params)


class MaskGenerator:
    """SAM, asked about a grid of points of each picture."""

    def __init__(self, network: Sam, params: config.Sam) -> None:
        self.network = network
        self.params = params
        self.device = network.device
        self.dtype = _dtype(params.precision, self.device)
        self.resize = ResizeLongestSide(network.image_encoder.img_size)
        self.grid = build_point_grid(params.points_per_side)
        self.order = np.arange(len(self.grid))
        if params.prune_points:
            self.order = _coarse_to_fine(params.points_per_side)

    @torch.inference_mode()
    def propose(self, image: np.ndarray) -> list[Region]:
        """Regions of a picture, surest first; image: uint8 (H, W, 3), image frame.

        There are none where SAM finds nothing, nor in a picture so long and thin that SAM's input has no row
        for it.
        """
        size = image.shape[:2]
        used = self.resize.get_preprocess_shape(*size, self.resize.target_length)
        if min(used) == 0:
            return []
        pixels = torch.from_numpy(self.resize.apply_image(image)).permute(2, 0, 1).to(self.device)
        with self._autocast():
            embedding = self.network.image_encoder(self.network.preprocess(pixels)[None])
        masks = torch.cat(list(self._masks(embedding, size, used)))
        kept = nms(masks[:, :4], masks[:, 5], self.params.box_nms_threshold)
        return [
            # The package's x2 and y2 are the last column and row.
            Region((x1, y1, x2 + 1, y2 + 1), area, min(max(quality, 0.0), 1.0), "sam")
            for x1, y1, x2, y2, area, quality in masks[kept].tolist()
        ]

    def _masks(self, embedding: Tensor, size: tuple[int, int], used: tuple[int, int]) -> Iterator[Tensor]:
        """Good and stable masks of the grid's points, some points at a time: box, area ratio, quality (K, 6).

        embedding: (1, C, S / 16, S / 16) of a picture of size (H, W), which fills `used` pixels of the input.
        """
        points = torch.from_numpy(self.resize.apply_coords(self.grid * size[::-1], size)).to(self.device)
        labels = torch.ones(len(points), 1, device=self.device)
        # In fp32: half precision moves points by several pixels.
        encoder = self.network.prompt_encoder
        prompts, dense = encoder(points=(points[:, None], labels), boxes=None, masks=None)
        pending = torch.from_numpy(self.order).to(self.device)
        explained = torch.zeros(len(points), dtype=torch.int, device=self.device)
        step = self.params.points_per_batch
        step = min(step, CPU_POINTS) if self.device.type == "cpu" else step
        least = self.params.pred_iou_threshold
        while len(pending):
            batch, pending = pending[:step], pending[step:]
            with self._autocast():
                logits, quality = self.network.mask_decoder(
                    embedding, encoder.get_dense_pe(), prompts[batch], dense[:1], multimask_output=True
                )
            # The package filters nothing at 0.
            good = (quality > least) | (least == 0)
            point, logits, quality = good.nonzero()[:, 0], logits[good].float(), quality[good].float()
            boxes, area, stability = self._measured(logits, size, used)
            stable = stability >= self.params.stability_threshold
            yield torch.column_stack([boxes, area, quality])[stable]
            if self.params.prune_points:
                smallest = _smallest(point[stable], area[stable], len(batch))
                inside = logits[stable][smallest] > self.network.mask_threshold
                column, row = (points * (inside.shape[-1] / self.resize.target_length)).long().T
                explained += inside[:, row, column].sum(dim=0)
                pending = pending[explained[pending] < EXPLAINED]

    def _measured(self, logits: Tensor, size: tuple[int, int], used: tuple[int, int]) -> tuple[Tensor, ...]:
        """Boxes (K, 4), area ratios (K,) and stability (K,) of masks, as the package measures them.

        logits (K, S / 4, S / 4). An empty mask has no stability: it is not a number.
        """
        threshold = self.network.mask_threshold
        found = [(logits.new_zeros(0, 4), logits.new_zeros(0), logits.new_zeros(0))]
        pixels = size[0] * size[1]
        for some in logits.split(max(1, PIXELS[self.device.type] // pixels)) if len(logits) else ():
            full = self.network.postprocess_masks(some[None], used, size)[0]
            inside = full > threshold
            area = inside.sum(dim=-1, dtype=torch.int32).sum(dim=-1) / pixels
            stability = calculate_stability_score(full, threshold, STABILITY_OFFSET)
            found.append((batched_mask_to_box(inside), area, stability))
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16 if devices.has_bf16(device) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


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
