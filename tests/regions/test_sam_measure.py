"""Boxes, areas and stability from low-resolution logits against the package's way over full-size masks."""

import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor
from torch.nn import functional

from goal.regions import sam_measure

SIDE, PADDED = 64, 256
# Height and width: smaller and larger than SAM's input, at it, square, wide, tall, tiny.
SIZES = [(256, 256), (375, 500), (300, 97), (128, 128), (33, 97), (7, 9), (900, 30)]


def used(size: tuple[int, int]) -> tuple[int, int]:
    """What the picture fills of SAM's input."""
    scale = PADDED / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def frame(size: tuple[int, int]) -> sam_measure.Frame:
    return sam_measure.frame(size, used(size), SIDE, PADDED, torch.device("cpu"))


def full(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The package's logits of the picture."""
    height, width = used(size)
    fine = functional.interpolate(logits[None], (PADDED, PADDED), mode="bilinear")[..., :height, :width]
    return functional.interpolate(fine, size, mode="bilinear")[0]


def blobs(count: int = 40) -> Tensor:
    """Smooth and rough masks of all sizes, an empty one, a full one and single points."""
    generator = torch.Generator().manual_seed(0)
    masks = []
    for number in range(count):
        coarse = int(torch.randint(2, 16, (), generator=generator))
        values = torch.randn(1, 1, coarse, coarse, generator=generator) * 4 - 2.0
        mask = functional.interpolate(values, (SIDE, SIDE), mode="bicubic")[0, 0]
        masks.append(mask + 0.3 * (number % 2) * torch.randn(SIDE, SIDE, generator=generator))
    special = torch.full((5, SIDE, SIDE), -1.5)  # not at a threshold or its offset
    special[1] = 3.0
    special[2, 5, 5] = 1.5
    special[3, 0, 0] = special[3, 3, 2] = 0.2
    special[4, SIDE - 1, SIDE - 1] = 2.0  # in the padding of all but square pictures
    return torch.cat([torch.stack(masks), special])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_boxes_are_the_packages_to_the_pixel(size: tuple[int, int], threshold: float) -> None:
    logits = blobs()
    pixels = full(logits, size) > threshold
    boxes, found = sam_measure.boxes(logits, frame(size), threshold)
    assert torch.equal(found, pixels.flatten(1).any(dim=1))
    assert torch.equal(boxes[found], batched_mask_to_box(pixels)[found])


@pytest.mark.parametrize("size", SIZES)
def test_areas_are_those_of_the_full_masks(size: tuple[int, int]) -> None:
    masks = blobs()
    expected = (full(masks, size) > 0).float().mean(dim=(1, 2))
    found = sam_measure.area_ratio(masks, frame(size), 0.0)
    # To the pixel or two where the picture is not larger than SAM's input: one may lie at the threshold.
    assert (found - expected).abs().max() < (2.5 / (size[0] * size[1]) if max(size) <= PADDED else 0.01)


def test_padding_does_not_count() -> None:
    logits = torch.full((1, SIDE, SIDE), -1.0)
    logits[:, SIDE // 2 + 1 :] = 1.0
    wide = (100, 200)  # fills the upper half
    assert sam_measure.area_ratio(logits, frame(wide), 0.0).item() < 0.01
    assert sam_measure.area_ratio(-logits, frame(wide), 0.0).item() > 0.99


@pytest.mark.parametrize("size", SIZES[:5])
@pytest.mark.parametrize("minimum", [0.2, 0.4, 0.6, 0.8])
def test_stability_decides_as_the_package(size: tuple[int, int], minimum: float) -> None:
    logits = blobs()
    score = calculate_stability_score(full(logits, size), 0.0, sam_measure.STABILITY_OFFSET)
    found = sam_measure.stable(logits, frame(size), 0.0, minimum)
    clear = ((score - minimum).abs() > 0.01) | score.isnan()
    assert clear.sum() > 35
    assert torch.equal(found[clear], (score >= minimum)[clear])


def test_an_empty_mask_is_not_stable() -> None:
    assert sam_measure.stable(torch.full((1, SIDE, SIDE), -9.0), frame((256, 256)), 0.0, 0.0).tolist() == [
        False
    ]


def test_no_masks_are_no_trouble() -> None:
    none = torch.empty(0, SIDE, SIDE)
    boxes, found = sam_measure.boxes(none, frame((30, 40)), 0.0)
    assert boxes.shape == (0, 4)
    assert found.shape == sam_measure.area_ratio(none, frame((30, 40)), 0.0).shape == (0,)
    assert sam_measure.stable(none, frame((30, 40)), 0.0, 0.9).shape == (0,)
