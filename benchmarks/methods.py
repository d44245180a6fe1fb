"""Which method wins: all trained at equal steps, batches and schedule, with several seeds, and compared.

    dvc repro                                # data, pairs, models/base
    python -m benchmarks.methods             # 5 seeds; a run that was finished before is not done again
    python -m benchmarks.methods --seeds 3   # one more process may train other seeds at the same time
    python -m benchmarks.methods --table     # only the table of what is finished

Each method is stage 2 with other values, from a stage 1 of the same seed. `global, equal compute` has twice
the epochs: the local terms encode a crop beside each picture. With --rates each method takes the learning
rate, of these, with the highest recall in validation at its first seed. `mixed` mixes the recipe's weights as
the mix stage does. The interval of a difference to `global` counts both what the test pictures and what the
seeds vary.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import figures
from goal import config, weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.evaluation import embed, galleries, query_metrics, ranking, statistics
from goal.evaluation.embed import Settings
from goal.runtime import devices
from goal.stages import mix, train
from goal.training import batches
from goal.training.examples import Needs
from goal.training.plan import BASELINES
from goal.training.progress import Silent

LOCAL = {"loss.local": 0.1, "loss.tsl_image": 0.1, "loss.tsl_text": 0.1}
PAPER = {"loss.local": 0.5, "loss.tsl_image": 1.0, "loss.tsl_text": 1.0}
# Changes to a stage 2 of the global term alone; None: trained by nobody, made of other models.
METHODS: dict[str, dict[str, Any] | None] = {
    "zero-shot": None,
    "stage1": None,
    "global": {},
    "global, equal compute": {"epochs": 2},
    "global+local": {"loss.local": 0.5},
    "GOAL, paper's weights": PAPER,
    "GOAL, balanced weights": LOCAL,
    "margins": {"loss.hard_negative": 0.5},
    "margins, GOAL balanced": LOCAL | {"loss.hard_negative": 0.5},
    "sentence to patches": {"loss.sentence_patches": 0.1},
    "alike batches": {"neighbours": True},
    "balanced": {"recipe": True},
    "mixed": None,
    "balanced, all terms": {
        "recipe": True,
        "loss.hard_negative": 0.1,
        "loss.sentence_patches": 0.1,
        "loss.late_interaction": 0.1,
    },
    "balanced, short captions": {"recipe": True, "short_share": 0.25},
    "balanced, averaged weights": {"recipe": True, "ema": 0.97},
}
COLUMNS = {
    ("test", "text_to_image_r1"): "long t→i",
    ("test", "image_to_text_r1"): "long i→t",
    ("joint", "text_to_image_map10"): "joint t→i",
    ("joint", "image_to_text_map10"): "joint i→t",
    ("short", "text_to_image_r1"): "short t→i",
    ("short", "image_to_text_r1"): "short i→t",
    ("twins", "text_to_image_accuracy"): "twins t→i",
    ("twins", "image_to_text_accuracy"): "twins i→t",
}
AGAINST = ("global", "global, equal compute")
FOLDER = Path("work/methods")
OUT = figures.RESULTS / "methods.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; default: stage2.lr")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.WARNING)
    params = config.load()
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.methods:
                run(params, name, seed, arguments.rates or [params.stage2.lr])
    found = finished()
    settings = {"data": params.data.model_dump(), "stage2": params.stage2.model_dump(by_alias=True)}
    summary = summarise(found)
    for name, one in summary.items():
        one["views"] = views(params, name)
    content = {"origin": figures.origin(), "settings": settings, "methods": summary}
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for baseline in AGAINST:
        print(f"\nIn brackets: the difference to {baseline}, and its 95 % interval.\n")
        print(table(summary, baseline))


def views(params: Params, name: str) -> int:
    """Pictures and crops that stage 2 encodes, if every picture has its pairs; 0 without a training."""
    name = "balanced" if name == "mixed" else name
    if METHODS[name] is None:
        return 0
    stage = changed(params, name, 0, params.stage2.lr).stage2
    pictures = manifest.read(paths.manifest(params.data.name, "train"))
    steps = stage.epochs * batches.steps_per_epoch(len(pictures), stage.batch_size)
    crops = Needs.of(stage.loss.model_dump(by_alias=True)).crops
    return steps * stage.batch_size * (1 + crops * stage.pairs.per_step)


def run(params: Params, name: str, seed: int, rates: Sequence[float]) -> None:
    """Train and measure one method with one seed, unless its result lies in FOLDER."""
    out = FOLDER / f"{seed}" / f"{name}.npz"
    if out.exists():
        return
    found, _ = galleries.load(params.data.name)
    began = time.monotonic()
    with project(seed):
        rate = rates[0] if METHODS[name] is None else _rate(params, name, seed, rates)
        model = _made(params, name, seed, rate)
        seconds = time.monotonic() - began
        device = devices.resolve(params.train.device, "train.device")
        settings = Settings(device.type, params.evaluate.batch_size, params.data.max_megapixels)
        (table,) = embed.embed(
            [model],
            [picture for gallery in found for picture in gallery.pictures],
            [text for gallery in found for text in gallery.texts],
            settings,
        )
        values: dict[str, np.ndarray] = {}
        for gallery in found:
            rows = ranking.measure(gallery, table, params.evaluate.chunk)
            for direction, own in query_metrics.by_direction(rows):
                names, outcome = query_metrics.metric_values(own, [1])
                for place, metric in enumerate(names):
                    values[f"{gallery.benchmark}/{direction}_{metric}"] = outcome[:, place]
                values[f"{gallery.benchmark}/{direction}/id"] = own["id"].to_numpy().astype(str)
        card = weights.card(model)
    about = {"seconds": seconds, "lr": rate, "steps": card.get("steps", 0), "alpha": card.get("alpha")}
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_suffix(".draft")
    with draft.open("wb") as handle:
        np.savez_compressed(handle, about=json.dumps(about), **values)
    draft.replace(out)
    print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)


@contextlib.contextmanager
def project(seed: int) -> Iterator[None]:
    """A folder of its own in which trainings of `seed` write, with this project's data, pairs and base."""
    folder, here = FOLDER / f"{seed}" / "project", Path.cwd()
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for name in ("data", "pairs", "models/base"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(here / name)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def _made(params: Params, name: str, seed: int, rate: float) -> Path:
    """The folder of a method's model, trained where it is not there yet."""
    if name == "zero-shot":
        return paths.model_dir("zero-shot")
    values = params.model_dump(by_alias=True, mode="json") | {"seed": seed}
    if not paths.weights_file("stage1").exists():
        train.run(config.parse(values, "stage 1"), "stage1", Silent())
    if name == "stage1":
        return paths.model_dir("stage1")
    if name == "mixed":
        _keep(params, "balanced", seed, rate)
        values["mix"]["model"] = "stage2"
        mix.run(config.parse(values, name), Silent())
        return paths.model_dir(paths.MIXED)
    return _keep(params, name, seed, rate)


def _keep(params: Params, name: str, seed: int, rate: float) -> Path:
    """Train a method as the model stage2 of the current folder, unless it is that already."""
    marker, wanted = paths.model_dir("stage2") / "method.json", json.dumps([name, seed, rate])
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        train.run(changed(params, name, seed, rate), "stage2", Silent())
        marker.write_text(wanted, encoding="utf-8")
    return paths.model_dir("stage2")


def _rate(params: Params, name: str, seed: int, rates: Sequence[float]) -> float:
    """The learning rate with the highest recall in validation at this seed; that of seed 0 for all others."""
    if len(rates) == 1:
        return rates[0]
    chosen = Path(f"../../{name}.lr")
    if not chosen.exists():
        recalls = {}
        for rate in rates:
            _keep(params, name, seed, rate)
            numbers = json.loads((paths.metrics_dir("stage2") / paths.NUMBERS).read_text(encoding="utf-8"))
            recalls[rate] = numbers["validation"]["recall"]
        chosen.write_text(json.dumps(max(recalls, key=recalls.__getitem__)), encoding="utf-8")
    return json.loads(chosen.read_text(encoding="utf-8"))


def changed(params: Params, name: str, seed: int, rate: float) -> Params:
    """The parameters of a method: of stage 2 with the global term alone, or of the recipe, then changes."""
    values = params.model_dump(by_alias=True, mode="json") | {"seed": seed}
    stage, changes = values["stage2"], dict(METHODS[name])
    stage["lr"] = rate
    if changes.pop("recipe", False):
        stage |= values["balanced"]
    else:
        kept = BASELINES["global"]
        stage["loss"] = {
            term: weight if term in (*kept, "attention_temperature") else 0.0
            for term, weight in stage["loss"].items()
        }
    if changes.pop("neighbours", False):
        stage["neighbours"] = values["balanced"]["neighbours"]
    stage["epochs"] *= changes.pop("epochs", 1)
    for field, value in changes.items():
        *path, last = field.split(".")
        place = stage
        for part in path:
            place = place[part]
        place[last] = value
    return config.parse(values, name)


def finished() -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """The results in FOLDER by method and seed."""
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name in METHODS:
        for file in sorted(FOLDER.glob(f"*/{name}.npz")):
            found.setdefault(name, {})[int(file.parent.name)] = dict(np.load(file))
    return found


def summarise(found: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]]) -> dict[str, Any]:
    """Per method: mean and standard deviation over the seeds, and the differences to the baselines."""
    summary: dict[str, Any] = {}
    for name, seeds in found.items():
        about = [json.loads(str(one["about"])) for one in seeds.values()]
        summary[name] = {
            "seeds": sorted(seeds),
            "seconds": round(fmean(one["seconds"] for one in about), 1),
            "about": about,
            "metrics": {},
        }
        for benchmark, metric in COLUMNS:
            key = f"{benchmark}/{metric}"
            means = [float(one[key].mean()) for one in seeds.values()]
            entry = {"mean": fmean(means), "spread": stdev(means) if len(means) > 1 else None}
            for baseline in AGAINST:
                common = sorted(seeds.keys() & found.get(baseline, {}).keys())
                if name != baseline and len(common) > 1:
                    ids = seeds[common[0]][f"{benchmark}/{metric.rpartition('_')[0]}/id"]
                    entry[f"difference to {baseline}"] = difference(
                        np.stack([seeds[seed][key] for seed in common]),
                        np.stack([found[baseline][seed][key] for seed in common]),
                        ids,
                    )
            summary[name]["metrics"][key] = entry
    return summary


def difference(first: np.ndarray, second: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """Mean of first - second, (seeds, queries) in percent, and its 95 % interval over pictures and seeds."""
    by_seed = (first - second).mean(1)
    (pictures,) = statistics.differences(first.mean(0)[:, None], second.mean(0)[:, None], ids)
    seeds = stats.t.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / math.sqrt(len(by_seed))
    half = math.hypot((pictures.high - pictures.low) / 2, seeds)
    mean = float(by_seed.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(summary: Mapping[str, Any], baseline: str) -> str:
    """Markdown: the mean of each metric over the seeds, and its difference to the baseline."""
    lines = [
        f"| method | seeds | views | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, one in summary.items():
        cells = []
        for benchmark, metric in COLUMNS:
            entry = one["metrics"][f"{benchmark}/{metric}"]
            cell, gap = f"{entry['mean']:.1f}", entry.get(f"difference to {baseline}")
            if gap:
                cell += f" ({gap['mean']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}])"
            cells.append(cell)
        lines.append(f"| {name} | {len(one['seeds'])} | {one['views']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
