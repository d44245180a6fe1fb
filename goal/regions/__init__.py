"""Regions of a picture, whatever proposes them: one small interface, one file a source.

LISM, first half (paper, section 3.1): a source proposes regions, those of a sensible size are kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from goal import config
from goal.errors import UserError


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a picture that may be described by a sentence.

    box: x1, y1, x2, y2 in pixels of the image frame, half open.
    area_ratio: area of the mask (of the box, where the source has no mask) over the picture's area.
    score: how sure the source is, 0 to 1; 1 where the source has no opinion.
    source: a name from `SOURCES`.
    """

    box: tuple[float, float, float, float]
    area_ratio: float
    score: float
    source: str


class Source(Protocol):
    """What proposes regions; the same picture gives the same regions, whatever else is in the batch."""

    def propose(self, images: list[np.ndarray]) -> list[list[Region]]:
        """Regions of each picture; images: uint8 (H, W, 3) RGB, image frame, sizes may differ."""
        ...


def _fixed(params: config.Regions, worker: int) -> Source:
    from goal.regions.fixed import Fixed

    return Fixed()


def _felzenszwalb(params: config.Regions, worker: int) -> Source:
    from goal.regions.felzenszwalb import Felzenszwalb

    return Felzenszwalb(params.felzenszwalb)


@contextmanager
def _package_of_sam() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "segment_anything":
            raise
        raise UserError("regions.sources: sam needs a package: pip install -e '.[sam]'") from error


def _sam(params: config.Regions, worker: int) -> Source:
    with _package_of_sam():
        from goal.regions import sam
    return sam.source(params.sam, params.device, worker)


def _sam_weights(params: config.Regions) -> Path:
    with _package_of_sam():
        from goal.regions import sam_weights
    return sam_weights.file(params.sam)


def _detector(params: config.Regions, worker: int) -> Source:
    from goal.regions.detector import Detector

    return Detector(params.detector, params.device, worker)


def _detector_weights(params: config.Regions) -> Path:
    from goal.regions import detector

    return detector.file(params.detector)


# Imported only when asked for: sources differ in what they need installed. The number is that of `build`.
SOURCES: dict[str, Callable[[config.Regions, int], Source]] = {
    "fixed": _fixed,
    "felzenszwalb": _felzenszwalb,
    "sam": _sam,
    "detector": _detector,
}
# Of the sources that are networks: the file of their weights, fetched where params name none.
WEIGHTS: dict[str, Callable[[config.Regions], Path]] = {"sam": _sam_weights, "detector": _detector_weights}


class Proposer:
    """Several sources as one: their regions in the order of the sources, sized, each box once."""

    def __init__(self, sources: list[Source], min_area: float, max_area: float) -> None:
        self.sources = sources
        self.min_area = min_area
        self.max_area = max_area

    def propose(self, images: list[np.ndarray]) -> list[list[Region]]:
        """Regions of each picture with min_area <= area_ratio <= max_area; of equal boxes the first stays.

        images: uint8 (H, W, 3) RGB, image frame.
        """
        proposals = [source.propose(images) for source in self.sources]
        return [self._keep([r for regions in each for r in regions]) for each in zip(*proposals, strict=True)]

    def _keep(self, regions: list[Region]) -> list[Region]:
        kept: dict[tuple[float, ...], Region] = {}
        for region in regions:
            if self.min_area <= region.area_ratio <= self.max_area:
                kept.setdefault(region.box, region)
        return list(kept.values())


def with_weights(params: config.Regions) -> config.Regions:
    """The same, every checkpoint in use an absolute path: from there any process can build the sources.

    Raises UserError where weights cannot be had.
    """
    named = {
        name: getattr(params, name).model_copy(update={"checkpoint": str(file(params).resolve())})
        for name, file in WEIGHTS.items()
        if name in params.sources
    }
    return params.model_copy(update=named)


def checkpoints(params: config.Regions) -> list[Path]:
    """The files of the weights in use, in the order of the sources; params: from `with_weights`."""
    return [Path(getattr(params, name).checkpoint) for name in params.sources if name in WEIGHTS]


def build(params: config.Regions, worker: int = 0) -> Proposer:
    """The sources that `regions.sources` names, ready to propose; loads their weights, so once a process.

    params: from `with_weights`; worker: as in goal.runtime.devices.resolve.
    """
    if WEIGHTS.keys() & set(params.sources):
        import torch

        # Not the machine's cores: with another number of threads sums come out otherwise in the last bits.
        torch.set_num_threads(params.threads)
    sources = [SOURCES[name](params, worker) for name in params.sources]
    return Proposer(sources, params.min_area, params.max_area)
