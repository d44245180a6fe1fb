"""SAM's boxes are the package's, with small trained weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import sam_model_registry
from torchvision.ops import box_iou

from benchmarks import small_sam
from benchmarks.sam_package import Package
from goal import config
from goal.errors import UserError
from goal.regions import Region, sam, sam_weights
from goal.regions.sam import MaskGenerator

SETTINGS = {
    "model": "vit_b",
    "checkpoint": str(small_sam.WEIGHTS),
    "points_per_side": 12,
    "points_per_batch": 16,
    "pred_iou_threshold": 0.8,
    "stability_threshold": 0.85,
    "box_nms_threshold": 0.7,
    "precision": "auto",
    "prune_points": False,
}


def settings(**changes) -> config.Sam:
    return config.Sam(**{**SETTINGS, **changes})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_is_vit_b(monkeypatch) -> None:
    """The small SAM stands in for vit_b, through the same loading."""
    monkeypatch.setitem(sam_model_registry, "vit_b", small_sam.build)


@pytest.fixture(scope="module")
def trained():
    return sam_weights.fill(small_sam.build, small_sam.WEIGHTS, "vit_b")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Scenes that the small SAM has not seen: square, wide, tall; below, at and above its 256 px."""
    images = [small_sam.picture(9, index)[0] for index in range(5)]
    sizes = [(128, 128), (256, 256), (500, 375), (300, 400), (90, 70)]
    return [
        np.asarray(Image.fromarray(image).resize(size, Image.BICUBIC))
        for image, size in zip(images, sizes, strict=True)
    ]


def matched(wanted: list[Region], found: list[Region]) -> int:
    """How many of the wanted boxes one of the found overlaps with IoU >= 0.9."""
    if not wanted or not found:
        return 0
    boxes = (torch.tensor([region.box for region in regions]) for regions in (wanted, found))
    return int((box_iou(*boxes).amax(dim=1) >= 0.9).sum())


def test_the_small_sam_makes_sense(trained, pictures) -> None:
    """Without this the comparisons below would compare noise."""
    hits = things = 0
    for index in range(4):
        image, masks = small_sam.picture(9, index)
        found = MaskGenerator(trained, settings()).propose(image)
        edges = [(ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) for ys, xs in map(np.nonzero, masks)]
        true = [Region((x1, y1, x2, y2), 0.1, 1.0, "sam") for y1, y2, x1, x2 in edges]
        things += len(true)
        boxes = (torch.tensor([r.box for r in regions], dtype=torch.float) for regions in (true, found))
        hits += int((box_iou(*boxes).amax(dim=1) >= 0.7).sum())
    assert hits >= 0.8 * things


def test_the_boxes_are_the_packages(trained, pictures) -> None:
    """Of the boxes of all pictures one may be missing: a quality may lie at its limit."""
    package = Package(sam_weights.fill(small_sam.build, small_sam.WEIGHTS, "vit_b"), settings())
    boxes = hits = returned = same_boxes = 0
    for picture in pictures:
        expected = package.propose(picture)
        found = MaskGenerator(trained, settings()).propose(picture)
        assert len(expected) >= 2
        boxes += len(expected)
        hits += matched(expected, found)
        returned += len(found) - matched(found, expected)
        same = {region.box: region for region in expected if region.box in {other.box for other in found}}
        same_boxes += len(same)
        for region in found:
            if region.box in same:
                assert region.area_ratio == pytest.approx(same[region.box].area_ratio, abs=0.01)
                assert region.score == pytest.approx(same[region.box].score, abs=0.01)
            x1, y1, x2, y2 = region.box
            assert 0 <= x1 < x2 <= picture.shape[1]
            assert 0 <= y1 < y2 <= picture.shape[0]
            assert 0 < region.area_ratio <= (x2 - x1) * (y2 - y1) / picture[..., 0].size + 1e-6
    assert boxes >= 20
    assert hits >= 0.95 * boxes
    assert returned <= 0.05 * boxes
    assert same_boxes >= 0.9 * boxes


@torch.no_grad()
@pytest.mark.parametrize("size", [(256, 256), (375, 500), (300, 97), (33, 97), (7, 9), (900, 30)])
def test_a_masks_measures_are_those_of_its_pixels(trained, size: tuple[int, int], monkeypatch) -> None:
    """Some masks at a time; padding does not count, an empty mask is never stable."""
    monkeypatch.setitem(sam.PIXELS, "cpu", 3 * size[0] * size[1])
    generator = MaskGenerator(trained, settings())
    used = generator.resize.get_preprocess_shape(*size, 256)
    coarse = torch.randn(10, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 4 - 1
    logits = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[:, 0]
    logits[0] = -9.0
    boxes, area, stability = generator._measured(logits, size, used)
    full = trained.postprocess_masks(logits[None], used, size)[0]
    for index, mask in enumerate(full.numpy()):
        inside = mask > 0
        assert area[index] == pytest.approx(inside.mean(), abs=1e-6)
        if (mask > -1).any():
            assert stability[index] == pytest.approx((mask > 1).sum() / (mask > -1).sum(), abs=1e-6)
        else:
            assert stability[index].isnan()
        if inside.any():
            rows, columns = np.nonzero(inside)
            assert boxes[index].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
    assert [len(part) for part in generator._measured(logits[:0], size, used)] == [0, 0, 0]


def test_pruning_asks_far_fewer_points_and_keeps_the_boxes(trained) -> None:
    pictures = [small_sam.picture(9, index)[0] for index in range(6)]
    asked = []
    hook = trained.mask_decoder.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[2])))
    generator = MaskGenerator(trained, settings())
    every = [generator.propose(picture) for picture in pictures]
    points = sum(asked)
    assert points == len(pictures) * 12 * 12
    asked.clear()
    generator = MaskGenerator(trained, settings(prune_points=True))
    pruned = [generator.propose(picture) for picture in pictures]
    hook.remove()
    assert sum(asked) <= 0.5 * points
    kept = sum(matched(wanted, found) for wanted, found in zip(every, pruned, strict=True))
    assert kept >= 0.9 * sum(map(len, every))


def test_half_precision_moves_few_boxes(trained, pictures) -> None:
    full, half = (MaskGenerator(trained, settings(precision=name)) for name in ("fp32", "bf16"))
    found = [(full.propose(picture), half.propose(picture)) for picture in pictures[:2]]
    assert sum(matched(a, b) for a, b in found) >= 0.8 * sum(len(a) for a, _ in found)


def test_where_sam_finds_nothing_there_are_no_regions(pictures) -> None:
    network = sam_weights.fill(small_sam.build, small_sam.WEIGHTS, "vit_b")
    # Sure of nothing.
    network.mask_decoder.iou_prediction_head.layers[-1].bias -= 10
    assert MaskGenerator(network, settings()).propose(pictures[0]) == []


def test_odd_pictures_are_taken(trained) -> None:
    generator = MaskGenerator(trained, settings(pred_iou_threshold=0.0, stability_threshold=0.0))
    assert generator.propose(np.zeros((1, 2000, 3), np.uint8)) == []
    assert all(region.box == (0, 0, 1, 1) for region in generator.propose(np.zeros((1, 1, 3), np.uint8)))


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    path = tmp_path / "h.pth"
    weights = small_sam.build().state_dict()
    weights["image_encoder.patch_embed.proj.bias"] = torch.zeros(1280)
    torch.save(weights, path)
    with pytest.raises(
        UserError, match=r"h\.pth: the weights are those of vit_h; regions\.sam\.model is vit_b"
    ):
        sam_weights.fill(small_sam.build, path, "vit_b")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"visual.proj": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match=r"w\.pth: not SAM's weights"):
        sam_weights.fill(small_sam.build, path, "vit_b")
    weights = small_sam.build().state_dict()
    weights.pop("mask_decoder.iou_token.weight")
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"not the weights of SAM vit_b: .*iou_token") as caught:
        sam_weights.fill(small_sam.build, path, "vit_b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1000, 500_000])
def test_a_cut_checkpoint_is_one_line(tmp_path: Path, small_is_vit_b, keep: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(small_sam.WEIGHTS.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cut\.pth: ") as caught:
        sam.source(settings(checkpoint=str(path)), "cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(small_is_vit_b) -> None:
    with pytest.raises(UserError, match=r"no/sam\.pth"):
        sam.source(settings(checkpoint="no/sam.pth"), "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_here_is_said(small_is_vit_b) -> None:
    with pytest.raises(UserError, match=r"regions\.device: cuda"):
        sam.source(settings(), "cuda")
    with pytest.raises(UserError, match="this cpu device has no fp16; set auto or fp32"):
        sam.source(settings(precision="fp16"), "cpu")


def test_meta_s_names_carry_what_the_table_says() -> None:
    assert set(sam_weights.CHECKPOINTS) == {"vit_h", "vit_l", "vit_b"} == set(sam_weights.WIDTHS.values())
    for name, remote in sam_weights.CHECKPOINTS.items():
        assert remote.file.startswith(f"sam_{name}_")
        assert len(remote.sha256) == 64
        assert remote.size > 300_000_000
