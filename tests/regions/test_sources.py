"""Region sources: what they propose on pictures whose parts are known."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from goal import boxes
from goal.config import Felzenszwalb as Params
from goal.datasets import scenes_layout, scenes_render
from goal.regions import Proposer, Region
from goal.regions.felzenszwalb import Felzenszwalb, _blur
from goal.regions.fixed import Fixed
from tests.imports import ROOT

SEGMENTER = Params(scales=[800.0], sigma=0.8, min_size=100, max_side=256)


def blank(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 240, dtype=np.uint8)


def scene(index: int) -> tuple[np.ndarray, list]:
    stream = scenes_layout.stream(0, "train", index, "layout")
    return scenes_render.render(scenes_layout.draw(stream, 3, 6), 128)


def test_fixed_crops_are_the_quadrants_and_the_centre():
    found = Fixed().propose(blank(100, 60))
    assert [region.box for region in found] == [
        (0, 0, 50, 30),
        (50, 0, 100, 30),
        (0, 30, 50, 60),
        (50, 30, 100, 60),
        (25, 15, 75, 45),
    ]
    assert {region.area_ratio for region in found} == {0.25}


def test_fixed_crops_of_odd_sides_stay_inside():
    found = Fixed().propose(blank(5, 3))
    assert all(0 <= r.box[0] < r.box[2] <= 5 and 0 <= r.box[1] < r.box[3] <= 3 for r in found)
    assert {(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]) / 15 for r in found} == {found[0].area_ratio}


def test_a_segment_is_its_tight_box_and_its_own_area():
    picture = blank(200, 100)
    picture[20:60, 30:90] = (200, 30, 30)
    picture[50:60, 60:90] = 240  # an L: its area is less than its box
    found = Felzenszwalb(SEGMENTER).propose(picture)
    # The blur makes thin segments of edges too; the thing itself is the largest but the background.
    thing = sorted(found, key=lambda region: region.area_ratio)[-2]
    assert overlap(thing.box, (30, 20, 90, 60)) > 0.8
    assert thing.area_ratio < 0.9 * boxes.area(thing.box) / (200 * 100)
    assert thing.area_ratio == pytest.approx((60 * 40 - 30 * 10) / (200 * 100), rel=0.2)


def test_boxes_of_a_large_picture_are_in_its_own_pixels():
    picture = blank(1000, 500)
    picture[100:300, 600:900] = (20, 60, 200)
    found = Felzenszwalb(SEGMENTER).propose(picture)
    assert max(overlap(region.box, (600, 100, 900, 300)) for region in found) > 0.9


def test_things_of_scenes_are_found():
    """The cover that LISM can reach with perfect matching: 99 % of things over 120 scenes."""
    hits = []
    for index in range(30):
        picture, truth = scene(index)
        found = Felzenszwalb(SEGMENTER).propose(picture)
        hits += [max(overlap(region.box, box) for region in found) >= 0.5 for box in truth]
    assert sum(hits) / len(hits) >= 0.95


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 2), (3, 3), (5, 300)])
def test_tiny_and_thin_pictures_do_no_harm(size):
    for source in (Fixed(), Felzenszwalb(SEGMENTER)):
        found = source.propose(blank(*size))
        assert all(0 <= r.box[0] < r.box[2] <= size[0] and 0 <= r.box[1] < r.box[3] <= size[1] for r in found)


class Given:
    """A source that proposes what it is given."""

    def __init__(self, found: list[Region]) -> None:
        self.found = found

    def propose(self, image: np.ndarray) -> list[Region]:
        return self.found


def test_sizes_are_kept_by_the_masks_area_limits_included():
    ratios = [0.005, 0.01, 0.5, 0.8, 0.81]
    source = Given([Region((i, 0, i + 9, 9), ratio, 1, "x") for i, ratio in enumerate(ratios)])
    kept = Proposer([source], 0.01, 0.8).propose(blank(20, 20))
    assert [region.area_ratio for region in kept] == [0.01, 0.5, 0.8]


def test_equal_boxes_are_kept_once_and_sources_in_order():
    first = Given([Region((0, 0, 9, 9), 0.1, 1, "one"), Region((1, 0, 9, 9), 0.1, 1, "one")])
    second = Given([Region((1, 0, 9, 9), 0.1, 1, "two"), Region((2, 0, 9, 9), 0.1, 1, "two")])
    kept = Proposer([first, second], 0.01, 0.8).propose(blank(20, 20))
    assert [(region.box[0], region.source) for region in kept] == [(0, "one"), (1, "one"), (2, "two")]


def overlap(a: tuple, b: tuple) -> float:
    return boxes.iou(*(torch.tensor([box], dtype=torch.float64) for box in (a, b))).item()


@pytest.mark.parametrize("sigma", [0.0, 0.5, 0.8, 3.0])
@pytest.mark.parametrize("size", [(40, 30), (1, 5), (2, 2)])
def test_the_blur_is_scipys(size: tuple[int, int], sigma: float) -> None:
    image = np.random.default_rng(0).random((*size, 3))
    np.testing.assert_allclose(_blur(image, sigma), gaussian_filter(image, (sigma, sigma, 0)), atol=1e-11)


SEGMENTS = """
import hashlib
from goal.regions.felzenszwalb import Felzenszwalb, _blur
from tests.regions import test_sources

fine = test_sources.Params(scales=[100.0, 300.0, 800.0], sigma=0.8, min_size=20, max_side=256)
source = Felzenszwalb(fine)
found = [source.propose(test_sources.scene(index)[0]) for index in range(16)]
found += [_blur(test_sources.scene(0)[0] / 255.0, sigma).tolist() for sigma in (0.7, 0.8, 1.3)]
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


def test_regions_do_not_depend_on_the_processor() -> None:
    """Without the instructions that only some processors have, numpy's argsort orders ties in another way.

    Its exp, of which the blur is made, differs in the last bit.
    """
    known = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    digests = {
        subprocess.run(
            [sys.executable, "-c", SEGMENTS],
            env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(off), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for off in ([], known)
    }
    assert len(digests) == 1
