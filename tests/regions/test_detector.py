"""The detector source: a real torchvision network, weights through files, faults in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from goal import config
from goal.errors import UserError
from goal.regions.detector import Detector

MODEL = "ssdlite320_mobilenet_v3_large"


def params(checkpoint: Path | str, **changes) -> config.Detector:
    values = {"model": MODEL, "checkpoint": str(checkpoint), "min_score": 0.0, "max_boxes": 30}
    return config.Detector(**{**values, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("detector") / "weights.pth"
    torch.save(get_model(MODEL, weights=None, weights_backbone=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in [(90, 140), (200, 61)]
    ]


def test_boxes_are_torchvisions_within_the_picture_and_sorted_by_score(checkpoint: Path, images) -> None:
    found = Detector(params(checkpoint), "cpu").propose(images)
    network = get_model(MODEL, weights=None, weights_backbone=None).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    for image, regions in zip(images, found, strict=True):
        with torch.no_grad():
            expected = network([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
        assert len(regions) == 30
        boxes = torch.tensor([region.box for region in regions])
        assert torch.allclose(boxes, expected["boxes"][:30], atol=1e-3)
        height, width = image.shape[:2]
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        scores = [region.score for region in regions]
        assert scores == sorted(scores, reverse=True)
        for region in regions:
            x1, y1, x2, y2 = region.box
            assert region.area_ratio == pytest.approx((x2 - x1) * (y2 - y1) / (width * height))
            assert region.source == "detector"


def test_a_picture_gives_the_same_regions_alone_and_in_company(checkpoint: Path, images) -> None:
    detector = Detector(params(checkpoint), "cpu")
    assert detector.propose(images) == [detector.propose([image])[0] for image in images]


def test_min_score_and_max_boxes_cut(checkpoint: Path, images) -> None:
    every = Detector(params(checkpoint, max_boxes=1000), "cpu").propose(images)[0]
    middle = every[len(every) // 2].score
    sure = Detector(params(checkpoint, max_boxes=1000, min_score=middle), "cpu").propose(images)[0]
    assert sure == [region for region in every if region.score >= middle]
    assert Detector(params(checkpoint, max_boxes=3), "cpu").propose(images)[0] == every[:3]
    assert Detector(params(checkpoint, min_score=1.0), "cpu").propose(images) == [[], []]


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"regions\.detector\.model: yolo is unknown; one of .*" + MODEL):
        Detector(params("", model="yolo"), "cpu")


def test_other_weights_are_refused(checkpoint: Path) -> None:
    other = "fasterrcnn_mobilenet_v3_large_320_fpn"
    with pytest.raises(UserError, match=f"not the weights of {other}") as caught:
        Detector(params(checkpoint, model=other), "cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth"):
        Detector(params(tmp_path / "gone.pth"), "cpu")


def test_weights_that_cannot_be_downloaded_are_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # An address of this machine on which nothing listens.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"regions\.detector\.checkpoint") as caught:
        Detector(params(""), "cpu")
    assert "\n" not in str(caught.value)
