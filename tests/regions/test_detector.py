"""The detector source: a real torchvision network, weights through files, faults in one line."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import detection, get_model, get_model_weights, list_models

from goal import config
from goal.errors import Unavailable, UserError
from goal.regions import detector
from goal.regions.detector import Detector
from goal.runtime import download
from tests.datasets.server import Served, serve
from tests.regions import small_detector
from tests.regions.small_detector import MODEL

OWN = get_model_weights(MODEL).DEFAULT


def params(checkpoint: Path | str, **changes) -> config.Detector:
    values = {"model": MODEL, "checkpoint": str(checkpoint), "min_score": 0.0, "max_boxes": 30}
    return config.Detector(**{**values, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "weights.pth"
    small_detector.write(path)
    return path


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in [(90, 140), (200, 61)]
    ]


def test_boxes_are_torchvisions_within_the_picture_and_sorted_by_score(checkpoint: Path, images) -> None:
    source = Detector(params(checkpoint), "cpu")
    network = get_model(MODEL, weights=None, weights_backbone=None).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    for image in images:
        regions = source.propose(image)
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


def test_min_score_and_max_boxes_cut(checkpoint: Path, images) -> None:
    every = Detector(params(checkpoint, max_boxes=1000), "cpu").propose(images[0])
    # Between two scores, so that no last bit decides.
    half = len(every) // 2
    middle = (every[half - 1].score + every[half].score) / 2
    assert every[half - 1].score - every[half].score > 1e-5
    sure = Detector(params(checkpoint, max_boxes=1000, min_score=middle), "cpu").propose(images[0])
    assert sure == [region for region in every if region.score >= middle]
    assert Detector(params(checkpoint, max_boxes=3), "cpu").propose(images[0]) == every[:3]
    assert Detector(params(checkpoint, min_score=1.0), "cpu").propose(images[0]) == []


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"regions\.detector\.model: yolo is unknown; one of .*" + MODEL):
        detector.file(params("", model="yolo"))


def test_other_weights_are_refused(checkpoint: Path) -> None:
    other = "fasterrcnn_mobilenet_v3_large_320_fpn"
    with pytest.raises(UserError, match=f"not the weights of {other}") as caught:
        Detector(params(checkpoint, model=other), "cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth"):
        Detector(params(tmp_path / "gone.pth"), "cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """torch's cache, in a folder of its own; no network behind it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # An address of this machine on which nothing listens.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "TRIES", 2)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_weights_that_cannot_be_downloaded_are_one_line(cache: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"a79551df\.pth: cannot be downloaded .* put the file there"
    ) as caught:
        detector.file(params(""))
    assert "\n" not in str(caught.value)


def test_torchvisions_own_weights_are_fetched_and_checked_by_the_digits_of_their_name(
    cache: Path, checkpoint: Path, monkeypatch
) -> None:
    content = checkpoint.read_bytes()
    digits = hashlib.sha256(content).hexdigest()[:8]
    with serve({f"model-{digits}.pth": Served(content), "model-00000000.pth": Served(content)}) as address:
        monkeypatch.setattr(type(OWN), "url", property(lambda _: f"{address}/model-{digits}.pth"))
        assert detector.file(params("")) == cache / f"model-{digits}.pth"
        monkeypatch.setattr(type(OWN), "url", property(lambda _: f"{address}/model-00000000.pth"))
        with pytest.raises(UserError, match=r"model-00000000\.pth: sha256 .* instead of 00000000"):
            detector.file(params(""))
    assert (cache / f"model-{digits}.pth").read_bytes() == content


def test_the_address_of_every_known_model_tells_its_checksum() -> None:
    for model in list_models(module=detection):
        assert re.fullmatch("[0-9a-f]{8}", detector._own(model).sha256), model
    assert set(list_models(module=detection)) > detector.WITHOUT_EPS


@pytest.mark.parametrize("model", [MODEL, "fasterrcnn_resnet50_fpn"])
def test_torchvisions_own_weights_make_the_network_that_torchvision_makes(
    cache: Path, images, model: str
) -> None:
    """Of some of its weights torchvision changes the network too (the eps of the norms)."""
    torch.manual_seed(0)
    network = get_model(model, weights=None, weights_backbone=None)
    # Norms with small variances, so that eps counts.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(1e-5, 1.0)
    path = cache / Path(get_model_weights(model).DEFAULT.url).name
    torch.save(network.state_dict(), path)
    # From the cache it does not check the digits.
    expected = get_model(model, weights="DEFAULT").eval()
    found = detector.load(params(path, model=model))
    with torch.inference_mode():
        pixels = torch.from_numpy(images[0])[None].permute(0, 3, 1, 2) / 255
        for name, features in expected.backbone(pixels).items():
            torch.testing.assert_close(found.backbone(pixels)[name], features, rtol=1e-3, atol=1e-4)
