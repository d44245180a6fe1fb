"""Weights between two models: what fine-tuning forgot comes back (WiSE-FT, arXiv 2109.01903).

Captions of the validation split give the long texts; the short ones are those of short_val.parquet or, where
the data set has none, the first sentence of each caption.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from goal import text, weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.model.network import GoalClip
from goal.runtime import code, devices, files
from goal.training.validation import Validation

START = "zero-shot"


@dataclass(frozen=True)
class Point:
    """Recall in validation at `alpha`, percent: the mean of R@1, 5 and 10 both ways, by kind of caption.

    None where there are no validation pictures.
    """

    alpha: float
    long: float | None
    short: float | None


def interpolate(start: GoalClip, end: GoalClip, alpha: float) -> GoalClip:
    """A network with the weights (1 - alpha) * start + alpha * end, on the device of `start`.

    Raises UserError where the two are of different networks.
    """
    if start.spec != end.spec:
        raise UserError(
            f"mix: {start.spec.name} (context {start.spec.context_length}) and {end.spec.name} (context "
            f"{end.spec.context_length}) are different networks; mix a model with the one it started from"
        )
    other = end.state_dict()
    return weights.build(
        start.spec, {name: value.lerp(other[name], alpha) for name, value in start.state_dict().items()}
    )


def curve(params: Params, start: GoalClip, end: GoalClip) -> Iterator[Point]:
    """Validation recall at each of mix.alphas, in their order; pictures are decoded once."""
    file, alphas = paths.manifest(params.data.name, "val"), params.mix.alphas
    rows = manifest.read(file)
    if not rows:
        check_alphas(alphas, file)
        yield Point(alphas[0], None, None)
        return
    device = devices.resolve(params.train.device, "train.device")
    validations = [
        Validation(one, start.spec, params.data.max_megapixels, params.evaluate.batch_size)
        for one in (rows, _short(params.data.name, rows))
    ]
    views = validations[0].views()
    for alpha in alphas:
        mixed = interpolate(start, end, alpha).to(device)
        found = [one.measure(mixed, nullcontext, 0, views) for one in validations]
        yield Point(alpha, *(_mean_recall(one) for one in found))


def check_alphas(alphas: Sequence[float], file: Path) -> None:
    """Raise UserError for more than one alpha where the validation manifest `file` has no pictures."""
    if len(alphas) > 1:
        raise UserError(
            f"mix.alphas: {file} has no pictures, by which one of several is chosen; set one value"
        )


def choose(points: Sequence[Point], max_short_drop: float) -> Point:
    """The point with the highest `long` among those at most `max_short_drop` points of `short` below alpha 0.

    Of equal ones the smallest alpha.
    """
    if len(points) == 1:
        return points[0]
    before = next(point.short for point in points if point.alpha == 0)
    allowed = [point for point in points if point.short >= before - max_short_drop]
    return max(sorted(allowed, key=lambda point: point.alpha), key=lambda point: point.long)


def folders(params: Params) -> list[Path]:
    """The folders of the two models."""
    return [paths.model_dir(START), paths.model_dir(params.mix.model)]


def identity(params: Params) -> dict[str, Any]:
    """Everything that the mixture depends on, by name."""
    rows = [paths.manifest(params.data.name, split) for split in ("val", "short_val")]
    return {
        "mix": params.mix.model_dump(),
        **{str(file): files.digest(file) for file in rows if file.exists()},
        **{str(folder): weights.digest(folder) for folder in folders(params)},
        "code": code.digest("stages/mix"),
        "torch": torch.__version__,
    }


def _short(data_set: str, rows: Sequence[Row]) -> list[Row]:
    """Those of the validation pictures that have a short caption, with these captions."""
    path = paths.manifest(data_set, "short_val")
    if path.exists():
        return manifest.read(path)
    return [
        replace(row, captions=tuple(text.split_sentences(one)[0].text for one in row.captions))
        for row in rows
    ]


def _mean_recall(found: dict[str, Any]) -> float:
    values = [value for way in ("text_to_image", "image_to_text") for value in found[way].values()]
    return sum(values) / len(values)
