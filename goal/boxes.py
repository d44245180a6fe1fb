"""Map a box of the picture to the view that the encoder sees, and to the patches that the box touches.

Frames: `image` is the picture after EXIF orientation, in pixels; `view` is what the encoder sees, after
resize and crop, in pixels; `grid` is the patches of the view. Boxes are (x1, y1, x2, y2), half open, origin
top left.
Letters: B boxes, N patches of a view, K and M boxes of two sets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsFloat

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MODES = ("center_crop", "squash")
BoxTuple = tuple[float, float, float, float]


@dataclass(frozen=True)
class View:
    """How a picture becomes the square that the encoder sees.

    `center_crop` resizes the shorter side to `view_size` and crops the centre square, rounding as
    torchvision and open_clip do; `squash` resizes both sides to `view_size`.

    image_size: (width, height) in pixels, image frame. view_size: side of the square in pixels.
    Raises ValueError for sizes below 1 and unknown modes.
    """

    image_size: tuple[int, int]
    view_size: int
    mode: str

    def __post_init__(self) -> None:
        if min(self.image_size) < 1 or self.view_size < 1:
            raise ValueError(f"a view needs sizes of at least 1 pixel: {self.image_size} to {self.view_size}")
        if self.mode not in MODES:
            raise ValueError(f"unknown view {self.mode!r}: expected one of {', '.join(MODES)}")

    @property
    def resized(self) -> tuple[int, int]:
        """(width, height) in pixels of the whole picture after the resize, before the crop."""
        width, height = self.image_size
        size = self.view_size
        if self.mode == "squash":
            return size, size
        # The longer side is truncated to whole pixels, not rounded, as in torchvision's Resize.
        if width <= height:
            return size, int(size * height / width)
        return int(size * width / height), size

    @property
    def offset(self) -> tuple[int, int]:
        """(left, top) corner of the view in the resized picture, in pixels."""
        # Python's round takes halves to the even pixel, as in torchvision's CenterCrop.
        left, top = (round((side - self.view_size) / 2) for side in self.resized)
        return left, top

    def box_to_view(self, box: Iterable[SupportsFloat]) -> BoxTuple:
        """Map a box from the image frame to the view frame, clipped to the view.

        A box that lies entirely outside the crop becomes empty, on the view's edge (see `visible`).
        Raises ValueError for a box that is NaN, empty, inverted or outside the picture.
        """
        x1, y1, x2, y2 = (min(max(value, 0.0), float(self.view_size)) for value in self._project(box))
        return x1, y1, x2, y2

    def visible(self, box: Iterable[SupportsFloat]) -> float:
        """Share of an image-frame box's area that lies inside the view, 0 to 1; raises like `box_to_view`."""
        return area(self.box_to_view(box)) / area(self._project(box))

    def _project(self, box: Iterable[SupportsFloat]) -> BoxTuple:
        x1, y1, x2, y2 = check(box)
        _inside((x1, y1, x2, y2), self.image_size)
        width, height = self.image_size
        (new_width, new_height), (left, top) = self.resized, self.offset
        # Multiply before dividing: an edge on a patch border stays exactly on it.
        return (
            x1 * new_width / width - left,
            y1 * new_height / height - top,
            x2 * new_width / width - left,
            y2 * new_height / height - top,
        )


def check(box: Iterable[SupportsFloat]) -> BoxTuple:
    """The box as four floats; raises ValueError if it is not four finite numbers or has no area."""
    values = tuple(float(value) for value in box)
    if len(values) != 4:
        raise ValueError(f"a box is (x1, y1, x2, y2), found {len(values)} numbers")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"box {values} is not finite")
    x1, y1, x2, y2 = values
    if x2 < x1 or y2 < y1:
        raise ValueError(f"box {values} is inverted: expected x1 < x2 and y1 < y2")
    if x2 == x1 or y2 == y1:
        raise ValueError(f"box {values} is empty")
    return x1, y1, x2, y2


def _inside(box: BoxTuple, image_size: tuple[int, int]) -> None:
    width, height = image_size
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"box {box} lies outside the picture of {width} x {height} pixels")


def area(box: BoxTuple) -> float:
    """Area of a box in square pixels of its frame."""
    return (box[2] - box[0]) * (box[3] - box[1])


def pixels(box: Iterable[SupportsFloat], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels that an image-frame box touches, for PIL's crop: the box rounded outwards and clipped.

    image_size: (width, height). Raises ValueError like `check`, and for a box outside the picture.
    """
    x1, y1, x2, y2 = check(box)
    _inside((x1, y1, x2, y2), image_size)
    width, height = image_size
    return (
        max(math.floor(x1), 0),
        max(math.floor(y1), 0),
        min(math.ceil(x2), width),
        min(math.ceil(y2), height),
    )


def patch_mask(box_in_view: Iterable[SupportsFloat], view_size: int, patch_size: int) -> Bool[Tensor, " N"]:
    """Patches that the box touches, row by row, N = (view_size / patch_size) ** 2 (paper, section 3, TSL).

    The start of the box is rounded down to a patch border, its end up.
    box_in_view: view frame, pixels. Raises ValueError like `patch_masks`.
    """
    boxes = torch.tensor([check(box_in_view)], dtype=torch.float64)
    return patch_masks(boxes, view_size, patch_size)[0]


def patch_masks(boxes: Float[Tensor, "B 4"], view_size: int, patch_size: int) -> Bool[Tensor, "B N"]:
    """`patch_mask` of B boxes at once, on their device.

    boxes: view frame, pixels. Raises ValueError for a box that is NaN, empty, inverted or outside the view,
    and for a view that is not a whole number of patches.
    """
    if patch_size < 1 or view_size < patch_size or view_size % patch_size:
        raise ValueError(f"a view of {view_size} pixels does not divide into patches of {patch_size}")
    start, end = boxes[:, :2], boxes[:, 2:]
    valid = (
        torch.isfinite(boxes).all(1) & (start < end).all(1) & (start < view_size).all(1) & (end > 0).all(1)
    )
    if not valid.all():
        row = int((~valid).nonzero()[0])
        check(boxes[row].tolist())
        raise ValueError(f"box {tuple(boxes[row].tolist())} lies outside the view of {view_size} pixels")
    first = torch.floor(start / patch_size)
    last = torch.ceil(end / patch_size)
    index = torch.arange(view_size // patch_size, device=boxes.device)
    columns = (index >= first[:, :1]) & (index < last[:, :1])
    rows = (index >= first[:, 1:]) & (index < last[:, 1:])
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def iou(a: Float[Tensor, "K 4"], b: Float[Tensor, "M 4"]) -> Float[Tensor, "K M"]:
    """Intersection over union of every box of `a` with every box of `b`, both in the same frame."""
    start = torch.maximum(a[:, None, :2], b[None, :, :2])
    end = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (end - start).clamp(min=0).prod(dim=2)
    area_a = (a[:, 2:] - a[:, :2]).prod(dim=1)
    area_b = (b[:, 2:] - b[:, :2]).prod(dim=1)
    return intersection / (area_a[:, None] + area_b[None, :] - intersection)
