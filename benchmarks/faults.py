"""What exactness buys: stage 2 on `scenes` with a fault of the released code put in, and without.

    dvc repro                               # draws scenes, mines pairs, trains stage 1
    python -m benchmarks.faults             # 3 seeds; writes json, prints the table of docs/findings.md

| arm | fault of the release | trained with |
|---|---|---|
| 1 | box to patches with the crop's width and height in place of the picture's | the full objective |
| 2 | box to patches as if the encoder saw the whole picture, not its centre crop | the same, pictures 3:2 |
| 3 | a grid hard-coded for another patch size: 7 columns of 8, as 14 of 16 | the full objective |
| 4 | the sentence's token span shifted by one | the full objective |
| 6 | pure bf16 weights in place of fp32 ones under autocast | the baseline `global` |

Each arm has a twin without its fault: the same start (models/stage1), pictures, order of batches and steps.
For arm 2 the pictures are stretched to 3:2, as square ones lose nothing to the centre crop. The metrics are
those of `goal evaluate`; `right` is the mean overlap (intersection over union) of the patches or tokens used
with the true ones, `moved` the share of weights that training changed at all.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from benchmarks import figures
from goal import boxes, config, weights
from goal.boxes import View
from goal.config import Params, paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.evaluation import embed, galleries, query_metrics, ranking
from goal.evaluation.embed import Settings
from goal.evaluation.galleries import Gallery, Picture
from goal.model.network import Spec
from goal.training import batches, distributed, examples, step
from goal.training.batches import BatchSampler, Collate
from goal.training.examples import Examples, Fault, Key, LocalPair, Needs, Pair, Sample
from goal.training.learner import Learner

STRETCH = 1.5
METRICS = {
    "R@1 text to image": ("test", "text_to_image_r1"),
    "R@1 image to text": ("test", "image_to_text_r1"),
    "twins": ("twins", "image_to_text_accuracy"),
    "joint mAP@10": ("joint", "text_to_image_map10"),
}
Put = Callable[[Row, Pair, Spec, LocalPair, int], LocalPair]


def crop_for_picture(row: Row, pair: Pair, spec: Spec, sample: LocalPair, tokens: int) -> LocalPair:
    """Fault 1. What falls outside the view goes to its last patch."""
    x1, y1, x2, y2 = pair.box
    size, last = spec.image_size, spec.image_size - 1
    wide, high = size / (x2 - x1), size / (y2 - y1)
    left, top = min(x1 * wide, last), min(y1 * high, last)
    wrong = (left, top, max(left + 1, min(x2 * wide, size)), max(top + 1, min(y2 * high, size)))
    return sample._replace(patches=boxes.patch_mask(wrong, size, spec.patch_size))


def whole_for_view(row: Row, pair: Pair, spec: Spec, sample: LocalPair, tokens: int) -> LocalPair:
    """Fault 2."""
    view = View((row.width, row.height), spec.image_size, "squash")
    return sample._replace(
        patches=boxes.patch_mask(view.box_to_view(pair.box), spec.image_size, spec.patch_size)
    )


def other_grid(row: Row, pair: Pair, spec: Spec, sample: LocalPair, tokens: int) -> LocalPair:
    """Fault 3: rows and columns of a grid of one less a side, numbered as if it were the network's."""
    grid = spec.image_size // spec.patch_size - 1
    view = View((row.width, row.height), grid * spec.patch_size, spec.view)
    wrong = boxes.patch_mask(view.box_to_view(pair.box), grid * spec.patch_size, spec.patch_size)
    return sample._replace(patches=torch.cat([wrong, wrong.new_zeros((grid + 1) ** 2 - grid**2)]))


def shifted(row: Row, pair: Pair, spec: Spec, sample: LocalPair, tokens: int) -> LocalPair:
    """Fault 4. The span stays inside the caption, of so many tokens."""
    start, end = sample.span
    end = min(end + 1, tokens)
    return sample._replace(span=(min(start + 1, end - 1), end))


@dataclass(frozen=True)
class Arm:
    """A training with a fault and, under the name `twin`, the same without."""

    name: str
    twin: str
    put: Put | None = None
    wide: bool = False
    precision: str = "fp32"  # fp32 | autocast: bf16 over fp32 weights | bf16: weights too
    lr: float | None = None
    terms: tuple[str, ...] = ("global", "local", "tsl_image", "tsl_text")

    @property
    def without(self) -> "Arm":
        precision = "autocast" if self.precision == "bf16" else self.precision
        return replace(self, name=self.twin, put=None, precision=precision)


ARMS = (
    Arm("1 crop's size for the picture's", "exact", crop_for_picture),
    Arm("3 another patch grid", "exact", other_grid),
    Arm("4 token span shifted by one", "exact", shifted),
    Arm("2 centre crop ignored", "exact, 3:2", whole_for_view, wide=True),
    Arm("6 bf16 weights", "global, fp32 weights", precision="bf16", terms=("global",)),
    Arm(
        "6 bf16 weights, lr 5e-6",
        "global, fp32 weights, lr 5e-6",
        precision="bf16",
        lr=5e-6,
        terms=("global",),
    ),
)


class Faulty(Dataset):
    """Examples with a fault put into every sample that has what the fault is about."""

    def __init__(self, data: Examples, pairs: Mapping[str, Sequence[Pair]], spec: Spec, put: Put) -> None:
        self.rows = data.rows
        self.overlaps: list[float] = []
        self._data = data
        self._pairs = pairs
        self._spec = spec
        self._put = put

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: Key) -> Sample | Fault:
        sample = self._data[key]
        if isinstance(sample, Fault) or not sample.pairs:
            return sample
        (right,), row = sample.pairs, self.rows[key.index]
        if right.patches is None or right.span is None:
            return sample
        wrong = self._put(row, self._pairs[row.id][0], self._spec, right, len(sample.caption))
        self.overlaps.append(_overlap(right, wrong))
        return sample._replace(pairs=[wrong])


def _overlap(right: LocalPair, wrong: LocalPair) -> float:
    patches = (right.patches & wrong.patches).sum() / (right.patches | wrong.patches).sum()
    (a, b), (c, d) = right.span, wrong.span
    tokens = max(0, min(b, d) - max(a, c)) / (max(b, d) - min(a, c))
    return min(float(patches), tokens)


def train(
    arm: Arm, params: Params, rows: Sequence[Row], pairs: Mapping, seed: int, file: Path
) -> dict[str, float]:
    """Stage 2 from models/stage1 with an arm's fault; writes the weights to `file`.

    Returns the overlap (1 without a fault of patches or tokens) and the share of weights that moved.
    """
    model = weights.load(paths.model_dir("stage1")).train()
    stage = params.stage2 if arm.lr is None else params.stage2.model_copy(update={"lr": arm.lr})
    terms = {name: value for name, value in stage.loss.model_dump(by_alias=True).items() if name in arm.terms}
    spec = model.spec
    data = Examples(
        rows, pairs, spec, Needs.of(terms), seed, params.data.max_megapixels, stage.pairs.min_visible
    )
    shown = Faulty(data, pairs, spec, arm.put) if arm.put else data
    if arm.precision == "bf16":
        model.bfloat16()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    sampler = BatchSampler(len(rows), stage.batch_size, stage.epochs, seed, 0, 0, 1)
    device = torch.device("cpu")
    bf16 = arm.precision != "fp32"
    with distributed.group(device, 1) as group:
        learner = Learner(model, stage, terms, len(sampler), group)
        for chunks in tqdm(
            batches.load(shown, sampler, Collate(spec, 0), 0, device),
            desc=f"{arm.name}, seed {seed}",
            total=len(sampler),
        ):
            learner.update(
                step.backward(
                    model, chunks, terms, group, lambda: torch.autocast("cpu", torch.bfloat16, bf16)
                )
            )
    moved = sum(int((value != before[name]).sum()) for name, value in model.named_parameters())
    count = sum(value.numel() for value in before.values())
    weights.save(model.float(), file)
    return {"right": fmean(shown.overlaps) if arm.put else 1.0, "moved": moved / count}


def measure(file: Path, found: Sequence[Gallery], params: Params) -> dict[str, float]:
    """The metrics of a trained network on the galleries."""
    (embedded,) = embed.embed(
        [file.parent],
        [picture for gallery in found for picture in gallery.pictures],
        [text for gallery in found for text in gallery.texts],
        Settings("cpu", params.evaluate.batch_size, params.data.max_megapixels),
    )
    means = {}
    for gallery in found:
        rows = ranking.measure(gallery, embedded, params.evaluate.chunk)
        summary = query_metrics.summarise(rows, query_metrics.shown(rows, [1]))
        means |= {(gallery.benchmark, name): one["mean"] for name, one in summary.items()}
    return {label: means[where] for label, where in METRICS.items()}


def stretched(
    rows: Sequence[Row], pairs: Mapping[str, Sequence[Pair]], folder: Path
) -> tuple[list[Row], dict]:
    """The rows and pairs on copies of the pictures in `folder`, STRETCH times as wide."""
    wide_rows = [
        replace(row, image=_stretch(row.image, folder), width=round(row.width * STRETCH)) for row in rows
    ]
    wide_pairs = {name: [replace(pair, box=_wide(pair.box)) for pair in own] for name, own in pairs.items()}
    return wide_rows, wide_pairs


def stretched_gallery(gallery: Gallery, folder: Path) -> Gallery:
    """The gallery on stretched copies of its pictures."""
    pictures = [Picture(_stretch(one.path, folder), one.box and _wide(one.box)) for one in gallery.pictures]
    return replace(gallery, pictures=tuple(pictures))


def _stretch(path: str, folder: Path) -> str:
    copy = folder / Path(path).name
    if not copy.exists():
        with Image.open(path) as image:
            image.resize((round(image.width * STRETCH), image.height), Image.Resampling.BICUBIC).save(copy)
    return str(copy)


def _wide(box: boxes.BoxTuple) -> boxes.BoxTuple:
    return box[0] * STRETCH, box[1], box[2] * STRETCH, box[3]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults.json"))
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.WARNING)
    params = config.load()
    rows = manifest.read(paths.manifest(params.data.name, "train"))
    pairs = examples.read_pairs(paths.pairs_dir("train"), params.stage2.pairs)
    found, _ = galleries.load(params.data.name)
    found = [gallery for gallery in found if gallery.benchmark in {where for where, _ in METRICS.values()}]
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wide = (*stretched(rows, pairs, folder), [stretched_gallery(gallery, folder) for gallery in found])
        arms = {arm.name: arm for one in ARMS for arm in (one.without, one)}
        for seed in range(arguments.seeds):
            for name, arm in arms.items():
                seen, own, asked = wide if arm.wide else (rows, pairs, found)
                file = folder / f"{seed}" / name.replace("/", " ") / paths.WEIGHTS
                trained = train(arm, params, seen, own, seed, file)
                results.setdefault(name, []).append(trained | measure(file, asked, params))
            _write(results, arguments.out)
    print(table(results))


def _write(results: Mapping[str, Sequence[Mapping[str, float]]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"origin": figures.origin(), "arms": results}, indent=1) + "\n")


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: each twin, then its faults, means and standard deviations over the seeds."""
    columns = ["right", "moved", *METRICS]
    lines = [f"| training | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, seeds in results.items():
        cells = []
        for column in columns:
            values = [one[column] * (100 if column in ("right", "moved") else 1) for one in seeds]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 and column in METRICS else ""
            cells.append(f"{fmean(values):.1f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
