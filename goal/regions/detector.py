"""Regions from an object detector: the boxes of FAST-GOAL's FLISM, which go with the source `fixed`."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import nn
from torchvision.models import detection, get_model, list_models

from goal import config, devices, tensorfiles
from goal.errors import UserError
from goal.regions import Region


class Detector:
    """The source `detector`: a network of torchvision.models.detection."""

    def __init__(self, params: config.Detector, device: str) -> None:
        """Load the network that params name; device: auto | cpu | cuda.

        Raises UserError for an unknown name, weights that cannot be had or do not fit, or a missing device.
        """
        self.params = params
        self.device = devices.resolve(device, "regions.device")
        self.network = load(params).to(self.device)

    @torch.inference_mode()
    def propose(self, images: list[np.ndarray]) -> list[list[Region]]:
        """The surest boxes of each picture, surest first; images: uint8 (H, W, 3), image frame."""
        # One at a time: torchvision would pad a batch to its largest picture, and so change the boxes.
        return [self._regions(image) for image in images]

    def _regions(self, image: np.ndarray) -> list[Region]:
        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1).float() / 255
        found = self.network([pixels])[0]
        sure = found["scores"] >= self.params.min_score
        boxes, scores = found["boxes"][sure].tolist(), found["scores"][sure].tolist()
        return [
            Region((x1, y1, x2, y2), (x2 - x1) * (y2 - y1) / (width * height), score, "detector")
            for (x1, y1, x2, y2), score in zip(boxes, scores, strict=True)
            if x2 > x1 and y2 > y1
        ][: self.params.max_boxes]


def load(params: config.Detector) -> nn.Module:
    """The network with the weights of params.checkpoint, or with torchvision's own, downloaded once.

    Raises UserError as Detector does.
    """
    known = list_models(module=detection)
    if params.model not in known:
        raise UserError(f"regions.detector.model: {params.model} is unknown; one of {', '.join(known)}")
    if not params.checkpoint:
        return _pretrained(params.model)
    path = Path(params.checkpoint)
    weights, _ = tensorfiles.read(path)
    network = get_model(params.model, weights=None, weights_backbone=None)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of {params.model}: {reason}") from error
    return network.eval()


def _pretrained(model: str) -> nn.Module:
    try:
        return get_model(model, weights="DEFAULT").eval()
    except (URLError, OSError, RuntimeError) as error:
        # RuntimeError: the bytes are not those that the file's name promises.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{model}: torchvision cannot download its weights ({reason}); put them on disk and name the"
            " file in regions.detector.checkpoint"
        ) from error
