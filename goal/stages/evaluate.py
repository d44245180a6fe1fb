"""The evaluate stage: measure models on every benchmark of a data set, with intervals and the protocol."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from goal.config import paths
from goal.datasets import manifest
from goal.errors import UserError
from goal.evaluation import colours, embed, galleries, query_metrics, ranking
from goal.evaluation.embed import EmbeddingTable, Settings
from goal.evaluation.galleries import Gallery
from goal.runtime import code, devices, files

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

# The recalls that `dvc metrics show` lists; details/ holds those of all evaluate.ks.
HEADLINE_KS = (1, 10)


@dataclass(frozen=True)
class Measured:
    """The results of one model on one benchmark, as they are written to disk."""

    benchmark: str
    rows: pa.Table
    details: dict[str, Any]
    headline: dict[str, float]


def run(params: "Params", names: Sequence[str], data_set: str = "") -> dict[str, dict[str, float]]:
    """Measure models of paths.MODELS; returns the headline metrics of each as {<benchmark>/<metric>: value}.

    Writes below metrics/<name>/: <benchmark>.json (the headline metrics, in percent),
    details/<benchmark>.json (all metrics with intervals, breakdowns and the protocol) and
    ranks/<benchmark>.parquet (one row per query). A benchmark that the data set lacks has 0 images, and its
    details give the reason. Pictures are decoded once for all models.
    data_set: a set other than data.name, made by an earlier `goal data`; its results lie in
    metrics/<name>/on/<data_set>/ and its benchmarks are called <data_set>/<benchmark>.
    Everything is measured before anything is written, so that a failed evaluation changes no file.
    Raises UserError for weights, manifests or pictures that cannot be read.
    """
    if data_set and not paths.manifest(data_set, "test").exists():
        raise UserError(
            f"--on {data_set}: data/{data_set} not found; set data.name to {data_set} and run `goal data`"
        )
    found, missing = galleries.load(data_set or params.data.name, mined=not data_set)
    for benchmark, reason in missing.items():
        log.warning("%s: no benchmark %s: %s", ", ".join(names), benchmark, reason)
    results: dict[str, list[Measured]] = {name: [] for name in names}
    if found:
        device = devices.resolve(params.train.device, "train.device")
        embedded = embed.embed(
            [paths.model_dir(name) for name in names],
            [picture for gallery in found for picture in gallery.pictures],
            [text for gallery in found for text in gallery.texts],
            Settings(device.type, params.evaluate.batch_size, params.data.max_megapixels),
        )
        for name, embeddings in zip(names, embedded, strict=True):
            results[name] = [_measure(params, data_set, name, gallery, embeddings) for gallery in found]
    for name in names:
        _write(paths.metrics_dir(name, data_set), results[name], missing)
    prefix = f"{data_set}/" if data_set else ""
    return {
        name: {
            f"{prefix}{result.benchmark}/{metric}": value
            for result in measured
            for metric, value in result.headline.items()
        }
        for name, measured in results.items()
    }


def _measure(
    params: "Params", data_set: str, name: str, gallery: Gallery, embeddings: EmbeddingTable
) -> Measured:
    rows = ranking.measure(gallery, embeddings, params.evaluate.chunk)
    ks = query_metrics.shown(rows, params.evaluate.ks)
    summary = query_metrics.summarise(rows, ks)
    for metric, value in query_metrics.chance(rows, ks).items():
        summary[metric]["chance"] = round(value, 4)
    for metric, value in colours.only(data_set or params.data.name, gallery, ks).items():
        summary[metric]["colours only"] = round(value, 4)
    details = {
        "benchmark": gallery.benchmark,
        "model": {"name": name, "network": embeddings.spec.name, "digest": embeddings.model},
        "protocol": protocol(data_set or params.data.name, gallery, embeddings),
        "source": gallery.source,
        # In the others a query has two right items, or one rival.
        "unanswerable": {} if gallery.benchmark in ranking.PARTS else gallery.unanswerable(embeddings.files),
        # Not the commit: the same code gives the same bytes. `goal register` looks whether a commit holds it.
        "code": code.digest("stages/evaluate"),
        "metrics": summary,
        "by": query_metrics.breakdowns(rows, ks),
    }
    known = set(params.evaluate.ks)
    hidden = {f"r{k}" for k in known - set(HEADLINE_KS)} if known & set(HEADLINE_KS) else set()
    headline = {key: one["mean"] for key, one in summary.items() if key.rsplit("_", 1)[1] not in hidden}
    log.info("%s: %s: %s", name, gallery.benchmark, ", ".join(f"{k} {v:.2f}" for k, v in headline.items()))
    return Measured(gallery.benchmark, rows, details, headline)


def _write(folder: Path, measured: Sequence[Measured], missing: Mapping[str, str]) -> None:
    files.make_folder(folder / "ranks")
    for one in measured:
        manifest.write_table(one.rows, folder / "ranks" / f"{one.benchmark}.parquet")
        files.write_json(one.details, folder / "details" / f"{one.benchmark}.json")
        counts = {name: one.details["protocol"][name] for name in ("images", "texts")}
        files.write_json(counts | one.headline, folder / f"{one.benchmark}.json")
    for benchmark, reason in missing.items():
        (folder / "ranks" / f"{benchmark}.parquet").unlink(missing_ok=True)
        content = {"benchmark": benchmark, "missing": reason}
        files.write_json(content, folder / "details" / f"{benchmark}.json")
        files.write_json({"images": 0, "texts": 0}, folder / f"{benchmark}.json")


def protocol(data_set: str, gallery: Gallery, embeddings: EmbeddingTable) -> dict[str, str | int]:
    """Everything that a metric depends on besides the model; a table shows results of one protocol only."""
    spec = embeddings.spec
    return {
        "data_set": data_set,
        "images": len(gallery.pictures),
        "texts": len(gallery.texts),
        "split": embed.content_digest(
            embeddings.files, gallery.pictures, gallery.texts, gallery.text_to_picture
        ),
        "precision": embed.PRECISION,
        "view": spec.view,
        "image_size": spec.image_size,
        "context_length": spec.context_length,
        "prompt": "",
    }
