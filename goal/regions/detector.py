"""Regions from an object detector: the boxes of FAST-GOAL's FLISM, which go with the source `fixed`."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import hub, nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from goal import config
from goal.errors import UserError
from goal.regions import Region
from goal.runtime import devices, download, tensorfiles
from goal.runtime.download import Remote

# torchvision takes the eps of the norms away from its own weights of these.
WITHOUT_EPS = {
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
}


class Detector:
    """The source `detector`: a network of torchvision.models.detection."""

    def __init__(self, params: config.Detector, device: str, worker: int = 0) -> None:
        """Load the network that params name; device, worker: as in goal.runtime.devices.resolve.

        Raises UserError for an unknown name, weights that cannot be had or do not fit, or a missing device.
        """
        self.params = params
        self.device = devices.resolve(device, "regions.device", worker)
        self.network = load(params).to(self.device)

    @torch.inference_mode()
    def propose(self, image: np.ndarray) -> list[Region]:
        """The surest boxes of a picture, surest first; image: uint8 (H, W, 3), image frame.

        There are none in a picture so long and thin that the network's input has no row or column for it.
        """
        height, width = image.shape[:2]
        resize = self.network.transform
        if not resize.fixed_size and min(height, width) * resize.max_size <= max(height, width):
            return []
        # A copy: the picture may be read-only, which torch does not know.
        pixels = torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1).float() / 255
        found = self.network([pixels])[0]
        sure = found["scores"] >= self.params.min_score
        boxes, scores = found["boxes"][sure].tolist(), found["scores"][sure].tolist()
        return [
            Region((x1, y1, x2, y2), (x2 - x1) * (y2 - y1) / (width * height), score, "detector")
            for (x1, y1, x2, y2), score in zip(boxes, scores, strict=True)
            if x2 > x1 and y2 > y1
        ][: self.params.max_boxes]


def file(params: config.Detector) -> Path:
    """The file of the weights: params.checkpoint, or torchvision's own, fetched once to torch's cache.

    Raises UserError for an unknown name, or weights that cannot be had.
    """
    check_known(params.model)
    if params.checkpoint:
        return Path(params.checkpoint)
    (path,) = download.fetch([_own(params.model)], Path(hub.get_dir(), "checkpoints"), params.model)
    return path


def load(params: config.Detector) -> nn.Module:
    """The network with the weights of params.checkpoint; raises UserError as Detector does."""
    check_known(params.model)
    path = Path(params.checkpoint)
    weights, _ = tensorfiles.read(path)
    network = get_model(params.model, weights=None, weights_backbone=None)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of {params.model}: {reason}") from error
    if params.model in WITHOUT_EPS and path.name == _own(params.model).file:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                # Nothing beside any variance; 0 itself is refused by torch 2.11.
                module.eps = torch.finfo(torch.float32).tiny
    return network.eval()


def _own(model: str) -> Remote:
    """torchvision's own weights of a model: their name ends in the first digits of their sha256."""
    url = get_model_weights(model).DEFAULT.url
    (digits,) = re.findall(r"-([0-9a-f]+)\.pth$", url)
    return Remote(url, sha256=digits)


def check_known(model: str) -> None:
    """Raise UserError for a model that torchvision does not have."""
    known = list_models(module=detection)
    if model not in known:
        raise UserError(f"regions.detector.model: {model} is unknown; one of {', '.join(known)}")
