"""Regions of a picture, whatever proposes them: one small interface, one file per source.

LISM, first half (paper, section 3.1): a source proposes regions, those of a sensible size are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from goal import config
from goal.boxes import BoxTuple

# The source that proposes nothing: its boxes came with the pictures.
GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture that may be described by a sentence.

    box: x1, y1, x2, y2 in pixels of the image frame, half open.
    area_ratio: area of the mask (of the box, where the source has no mask) over the picture's area.
    score: how sure the source is, 0 to 1; 1 where the source has no opinion.
    source: the name of what proposed it, as in `regions.sources`.
    """

    box: tuple[float, float, float, float]
    area_ratio: float
    score: float
    source: str


class Source(Protocol):
    """What proposes regions; the same picture gives the same regions."""

    def propose(self, image: np.ndarray) -> list[Region]:
        """Regions of a picture; image: uint8 (H, W, 3) RGB, image frame."""
        ...


def _source(name: str, params: config.Regions, worker: int) -> Source:
    # Imported only when asked for: sources differ in what they need installed.
    match name:
        case "fixed":
            from goal.regions import fixed

            return fixed.Fixed()
        case "felzenszwalb":
            from goal.regions import felzenszwalb

            return felzenszwalb.Felzenszwalb(params.felzenszwalb)
        case "sam":
            from goal.regions import sam

            return sam.source(params.sam, params.device, worker)
        case "detector":
            from goal.regions import detector

            return detector.Detector(params.detector, params.device, worker)


def _sam_weights(params: config.Regions) -> Path:
    from goal.regions import sam_weights

    return sam_weights.file(params.sam)


def _detector_weights(params: config.Regions) -> Path:
    from goal.regions import detector

    return detector.file(params.detector)


# Of the sources that are networks: the file of their weights, downloaded if params name none.
WEIGHTS: dict[str, Callable[[config.Regions], Path]] = {"sam": _sam_weights, "detector": _detector_weights}


class Proposer:
    """Several sources as one: their regions in the order of the sources, sized, each box once."""

    def __init__(self, sources: list[Source], min_area: float, max_area: float) -> None:
        self.sources = sources
        self.min_area = min_area
        self.max_area = max_area

    def propose(self, image: np.ndarray, given: Sequence[BoxTuple] = ()) -> list[Region]:
        """Regions with min_area <= area_ratio <= max_area; of equal boxes the first stays.

        image: uint8 (H, W, 3) RGB, image frame; given: boxes that came with it, which are the first regions.
        """
        kept: dict[tuple[float, ...], Region] = {}
        own = [_given(box, image.shape[0] * image.shape[1]) for box in given]
        for region in chain(own, *(source.propose(image) for source in self.sources)):
            if self.min_area <= region.area_ratio <= self.max_area:
                kept.setdefault(region.box, region)
        return list(kept.values())


def _given(box: BoxTuple, pixels: int) -> Region:
    x1, y1, x2, y2 = box
    return Region(box, (x2 - x1) * (y2 - y1) / pixels, 1.0, GIVEN)


def with_weights(params: config.Regions) -> config.Regions:
    """The same with the absolute path of every checkpoint in use, so that any process can build the sources.

    Raises UserError if weights cannot be downloaded.
    """
    named = {
        name: getattr(params, name).model_copy(update={"checkpoint": str(file(params).resolve())})
        for name, file in WEIGHTS.items()
        if name in params.sources
    }
    return params.model_copy(update=named)


def known(source: str, model: str) -> None:
    """Raise UserError where a source cannot be used: its package is missing, or its model unknown."""
    if source == "sam":
        from goal.regions import sam_weights  # noqa: F401
    if source == "detector":
        from goal.regions import detector

        detector.check_known(model)


def checkpoints(params: config.Regions) -> list[Path]:
    """The files of the weights in use, in the order of the sources; params: from `with_weights`."""
    return [Path(getattr(params, name).checkpoint) for name in params.sources if name in WEIGHTS]


def build(params: config.Regions, worker: int = 0) -> Proposer:
    """The sources that `regions.sources` names, their weights loaded.

    params: from `with_weights`; worker: as in goal.runtime.devices.resolve.
    """
    if WEIGHTS.keys() & set(params.sources):
        import torch

        # Not the machine's cores: with another number of threads sums come out otherwise in the last bits.
        torch.set_num_threads(params.threads)
    sources = [_source(name, params, worker) for name in params.sources if name != GIVEN]
    return Proposer(sources, params.min_area, params.max_area)
