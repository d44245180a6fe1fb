"""A small detector of torchvision's with random weights, so large that its boxes hang on the picture."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model

MODEL = "ssdlite320_mobilenet_v3_large"


def write(path: Path, seed: int = 0) -> None:
    """Write its weights; other seeds give other boxes."""
    torch.manual_seed(seed)
    network = get_model(MODEL, weights=None, weights_backbone=None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
