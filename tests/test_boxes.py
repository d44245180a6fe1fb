"""Boxes against the real preprocessing: a box painted into a picture lights the patches of its mask."""

import itertools
import math
import random

import numpy as np
import open_clip
import pytest
import torch
import torchvision
from PIL import Image, ImageDraw

from goal.boxes import View, area, check, iou, patch_mask, patch_masks, pixels

SHAPES = [(640, 427), (427, 640), (500, 500), (333, 500), (1024, 300), (257, 769), (160, 225)]
VIEWS = [(224, 14), (224, 16), (224, 32), (64, 8), (336, 14)]
OPEN_CLIP_MODE = {"center_crop": "shortest", "squash": "squash"}


def transform(view_size: int, mode: str):
    """open_clip's preprocessing without the colour normalisation: a black picture stays 0."""
    return open_clip.image_transform(
        view_size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=OPEN_CLIP_MODE[mode]
    )


def paint(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    picture = Image.new("RGB", size)
    x1, y1, x2, y2 = box
    ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill="white")
    return picture


def lit_patches(view: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Patches with a pixel brighter than 0.5; view: (3, S, S)."""
    grid = view[0].unfold(0, patch_size, patch_size).unfold(1, patch_size, patch_size)
    return (grid.amax(dim=(2, 3)) > 0.5).flatten()


def clear_of_borders(box: tuple, view_size: int, patch_size: int) -> bool:
    """Whether all edges are far enough from patch borders that the blur of the resize does not matter."""
    inside = [edge for edge in box if 0 < edge < view_size]
    return all(0.6 <= edge % patch_size <= patch_size - 0.6 for edge in inside)


def draw_box(rng: random.Random, size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    x1, y1 = rng.randrange(width - 20), rng.randrange(height - 20)
    return x1, y1, rng.randrange(x1 + 20, width + 1), rng.randrange(y1 + 20, height + 1)


@pytest.mark.parametrize("mode", ["center_crop", "squash"])
@pytest.mark.parametrize("size", SHAPES)
def test_view_has_the_geometry_of_torchvision(size, mode):
    for view_size in (224, 336, 64, 15):
        view = View(size, view_size, mode)
        resize = view_size if mode == "center_crop" else (view_size, view_size)
        resized = torchvision.transforms.Resize(resize)(Image.new("RGB", size))
        assert view.resized == resized.size
        # The values are the rows and columns, so that they show which pixels CenterCrop takes.
        rows = torch.arange(resized.height).view(1, -1, 1).expand(1, resized.height, resized.width)
        columns = torch.arange(resized.width).view(1, 1, -1).expand(1, resized.height, resized.width)
        crop = torchvision.transforms.CenterCrop(view_size)(torch.cat([columns, rows]))
        assert view.offset == tuple(crop[:, 0, 0].tolist())


@pytest.mark.parametrize(("view_size", "patch_size"), VIEWS)
@pytest.mark.parametrize("mode", ["center_crop", "squash"])
def test_painted_boxes_light_the_patches_of_the_mask(mode, view_size, patch_size):
    rng = random.Random(0)
    compared = 0
    for size in SHAPES:
        see = transform(view_size, mode)
        view = View(size, view_size, mode)
        drawn = 0
        while drawn < 4:
            box = draw_box(rng, size)
            if view.visible(box) == 0:
                continue
            seen = view.box_to_view(box)
            # Where the resize enlarges, its blur is as wide as a pixel of the picture.
            blur = max(view.resized[0] / size[0], view.resized[1] / size[1])
            if not clear_of_borders(seen, view_size, patch_size) or blur > 1.5:
                drawn += blur > 1.5
                continue
            drawn += 1
            compared += 1
            lit = lit_patches(see(paint(size, box)), patch_size)
            assert torch.equal(lit, patch_mask(seen, view_size, patch_size)), (size, box)
    assert compared >= 12


@pytest.mark.parametrize("patch_size", [14, 16, 32])
@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3, 2), (1, 1)])
def test_edges_on_patch_borders_touch_nothing_beyond(shape, patch_size):
    # The picture is twice as large as the view, so every patch border is a whole pixel of the picture.
    size = (448 * shape[0] // min(shape), 448 * shape[1] // min(shape))
    view = View(size, 224, "center_crop")
    step = 2 * patch_size
    left, top = 2 * view.offset[0], 2 * view.offset[1]
    box = (left + step, top + 2 * step, left + 3 * step, top + 5 * step)
    mask = patch_mask(view.box_to_view(box), 224, patch_size)
    assert mask.sum() == 2 * 3
    assert torch.equal(lit_patches(transform(224, "center_crop")(paint(size, box)), patch_size), mask)


def test_patches_follow_the_exif_orientation(tmp_path):
    images = pytest.importorskip("goal.datasets.images")
    upright = (300, 420)
    box = (30, 220, 120, 400)
    for orientation in range(1, 9):
        # The picture as a camera stores it: turned by `orientation`, it is upright.
        undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
        stored = paint(upright, box) if undo is None else paint(upright, box).transpose(undo)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        stored.save(path, exif=exif)
        picture = images.open_image(path, 10)
        assert picture.size == upright
        seen = View(picture.size, 224, "center_crop").box_to_view(box)
        lit = lit_patches(transform(224, "center_crop")(picture), 16)
        assert torch.equal(lit, patch_mask(seen, 224, 16)), orientation


def draw_region(rng: random.Random, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of a size that LISM keeps: sides of 10 to 90 % of the picture's."""
    width, height = size
    wide, high = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    x1, y1 = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    return int(x1), int(y1), int(x1 + wide), int(y1 + high)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two sets of patches."""
    return ((a & b).sum() / (a | b).sum()).item()


def naive_mask(x1: float, y1: float, x2: float, y2: float, grid: int) -> torch.Tensor:
    """The mask of a box in units of patches, clipped to the grid, by a loop."""
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    for row, column in itertools.product(range(grid), range(grid)):
        mask[row, column] = math.floor(y1) <= row < math.ceil(y2) and math.floor(x1) <= column < math.ceil(x2)
    return mask.flatten()


def test_fault_1_boxes_are_scaled_by_the_size_of_the_image():
    """The release divides by the crop's width and height; on a square picture this is its only fault."""
    rng = random.Random(1)
    shares = []
    for _ in range(300):
        box = draw_region(rng, (448, 448))
        x1, y1, x2, y2 = box
        seen = View((448, 448), 224, "center_crop").box_to_view(box)
        right = patch_mask(seen, 224, 16)
        assert torch.equal(right, naive_mask(*(14 * value / 448 for value in box), 14))
        wide, high = x2 - x1, y2 - y1
        release = naive_mask(14 * x1 / wide, 14 * y1 / high, 14 * x2 / wide, 14 * y2 / high, 14)
        shares.append(overlap(right, release))
    assert sum(shares) / len(shares) == pytest.approx(0.2, abs=0.05)


def test_fault_2_the_centre_crop_is_part_of_the_mapping():
    """The release maps the whole picture to the view, as if there were no crop."""
    rng = random.Random(2)
    shares = []
    size = (600, 400)
    view = View(size, 224, "center_crop")
    while len(shares) < 300:
        box = draw_region(rng, size)
        if view.visible(box) < 0.25:
            continue
        x1, y1, x2, y2 = box
        release = naive_mask(14 * x1 / 600, 14 * y1 / 400, 14 * x2 / 600, 14 * y2 / 400, 14)
        shares.append(overlap(patch_mask(view.box_to_view(box), 224, 16), release))
    assert sum(shares) / len(shares) == pytest.approx(0.75, abs=0.05)


def test_fault_3_the_patch_size_is_that_of_the_model():
    """ViT-L/14 has a grid of 16 x 16; the release's mask for patches of 16 pixels has 14 x 14."""
    box = (20.0, 30.0, 100.0, 110.0)
    assert patch_mask(box, 224, 14).shape == (256,)
    assert patch_mask(box, 224, 16).shape == (196,)
    assert torch.equal(patch_mask(box, 224, 14), naive_mask(20 / 14, 30 / 14, 100 / 14, 110 / 14, 16))


def test_visible_is_the_share_of_the_box_inside_the_crop():
    view = View((400, 200), 100, "center_crop")
    assert view.visible((0, 0, 400, 200)) == pytest.approx(0.5)
    assert view.visible((0, 0, 100, 200)) == 0
    assert view.visible((50, 20, 150, 60)) == pytest.approx(0.5)
    assert View((400, 200), 100, "squash").visible((0, 0, 100, 200)) == 1


def test_a_box_outside_the_crop_becomes_empty_on_the_edge():
    view = View((400, 200), 100, "center_crop")
    assert area(view.box_to_view((0, 0, 100, 100))) == 0
    with pytest.raises(ValueError, match="empty"):
        patch_mask(view.box_to_view((0, 0, 100, 100)), 100, 10)


def test_a_box_beyond_the_edge_of_the_picture_is_clipped():
    assert View((100, 100), 100, "squash").box_to_view((-5, 10, 120, 20)) == (0, 10, 100, 20)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 10, 20), "empty"),
        ((20, 10, 10, 20), "inverted"),
        ((10, 20, 20, 10), "inverted"),
        ((float("nan"), 0, 1, 1), "finite"),
        ((0, 0, float("inf"), 1), "finite"),
        ((0, 0, 1), "found 3"),
        ((100, 0, 120, 10), "outside the picture"),
        ((-30, 0, -10, 10), "outside the picture"),
        ((0, 300, 10, 310), "outside the picture"),
    ],
)
def test_invalid_boxes_are_refused(box, message):
    view = View((100, 200), 64, "center_crop")
    with pytest.raises(ValueError, match=message):
        view.box_to_view(box)
    with pytest.raises(ValueError, match=message):
        view.visible(box)
    with pytest.raises(ValueError, match=message):
        pixels(box, (100, 200))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5.0, 5.0, 5.0, 9.0), "empty"),
        ((9.0, 5.0, 5.0, 9.0), "inverted"),
        ((float("nan"), 5.0, 5.0, 9.0), "finite"),
        ((64.0, 5.0, 70.0, 9.0), "outside the view"),
        ((-9.0, 5.0, 0.0, 9.0), "outside the view"),
    ],
)
def test_masks_of_invalid_boxes_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        patch_masks(torch.tensor([[0.0, 0.0, 9.0, 9.0], box]), 64, 8)


def test_invalid_views_are_refused():
    with pytest.raises(ValueError, match="unknown view 'pad'"):
        View((10, 10), 64, "pad")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        View((0, 10), 64, "squash")
    with pytest.raises(ValueError, match="does not divide"):
        patch_mask((0, 0, 9, 9), 224, 15)


def test_one_pixel_pictures_have_a_view():
    view = View((1, 1), 64, "center_crop")
    assert view.box_to_view((0, 0, 1, 1)) == (0, 0, 64, 64)


def test_a_crop_takes_every_pixel_that_the_box_touches():
    assert pixels((2.0, 3.0, 7.0, 8.0), (10, 10)) == (2, 3, 7, 8)
    assert pixels((2.9, 3.1, 7.1, 8.9), (10, 10)) == (2, 3, 8, 9)
    assert pixels((-4, 3, 70, 8), (10, 10)) == (0, 3, 10, 8)
    with pytest.raises(ValueError, match="outside the picture"):
        pixels((10, 0, 12, 4), (10, 10))


def test_masks_of_many_boxes_equal_those_one_by_one():
    rng = random.Random(3)
    boxes = torch.tensor([draw_box(rng, (224, 224)) for _ in range(50)], dtype=torch.float32)
    masks = patch_masks(boxes, 224, 32)
    assert all(torch.equal(mask, patch_mask(box, 224, 32)) for mask, box in zip(masks, boxes, strict=True))
    assert (masks.sum(1) >= 1).all()


def test_check_returns_floats():
    assert check(np.array([1, 2, 3, 4])) == (1.0, 2.0, 3.0, 4.0)


def test_iou_equals_torchvisions():
    rng = random.Random(4)
    a = torch.tensor([draw_box(rng, (100, 100)) for _ in range(20)], dtype=torch.float32)
    b = torch.tensor([draw_box(rng, (100, 100)) for _ in range(30)], dtype=torch.float32)
    torch.testing.assert_close(iou(a, b), torchvision.ops.box_iou(a, b))
