"""The evaluate stage: one model on every benchmark of the data set, with intervals and the protocol."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from goal.config import paths
from goal.datasets import manifest
from goal.errors import UserError
from goal.evaluation import answers, embed, galleries
from goal.evaluation.embed import EmbeddingTable, Settings
from goal.evaluation.galleries import Gallery
from goal.runtime import devices, files

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

# Recalls that `dvc metrics show` lists; all of evaluate.ks are in details/.
HEADLINE_KS = (1, 10)


@dataclass(frozen=True)
class Measured:
    """One model on one benchmark, as it is written."""

    benchmark: str
    answers: pa.Table
    details: dict[str, Any]
    headline: dict[str, float]


def run(params: "Params", name: str) -> dict[str, float]:
    """Measure the model `name` (one of paths.MODELS); returns the headline as <benchmark>/<metric>.

    Writes below metrics/<name>/: <benchmark>.json (the headline, in percent), details/<benchmark>.json (all
    metrics with intervals, breakdowns and the protocol) and ranks/<benchmark>.parquet (one row a query). A
    benchmark that the data set lacks has 0 images, and its details say why.
    Raises UserError for weights, manifests or pictures that cannot be read.
    """
    return run_many(params, [name])[name]


def run_many(params: "Params", names: Sequence[str], data_set: str = "") -> dict[str, dict[str, float]]:
    """Measure several models at once, pictures decoded once; the headline of each.

    data_set: another set than data.name, made before by `goal data`; its results lie below
    metrics/<name>/on/<data_set>/ and its benchmarks are called <data_set>/<benchmark>.
    All is measured before anything is written, so that an evaluation that ends early changes no file.
    """
    if data_set and not paths.manifest(data_set, "test").exists():
        raise UserError(
            f"--on {data_set}: no data/{data_set}; `goal data` makes it, data.name being {data_set}"
        )
    found, missing = galleries.load(data_set or params.data.name, mined=not data_set)
    for benchmark, reason in missing.items():
        log.warning("%s: no benchmark %s: %s", ", ".join(names), benchmark, reason)
    measured: dict[str, list[Measured]] = {name: [] for name in names}
    if found:
        embedded = embed.embed(
            [paths.model_dir(name) for name in names],
            [picture for gallery in found for picture in gallery.pictures],
            [text for gallery in found for text in gallery.texts],
            _settings(params),
        )
        for name, embeddings in zip(names, embedded, strict=True):
            measured[name] = [_measure(params, data_set, name, gallery, embeddings) for gallery in found]
    prefix = f"{data_set}/" if data_set else ""
    for name in names:
        _write(paths.metrics_dir(name, data_set), measured[name], missing)
    return {
        name: {
            f"{prefix}{one.benchmark}/{metric}": value
            for one in measured[name]
            for metric, value in one.headline.items()
        }
        for name in names
    }


def _measure(
    params: "Params", data_set: str, name: str, gallery: Gallery, embeddings: EmbeddingTable
) -> Measured:
    ks, resamples = sorted(params.evaluate.ks), params.evaluate.bootstrap
    answered = answers.answer(gallery, embeddings, params.evaluate.chunk)
    summary = answers.summarise(answered, ks, resamples, params.seed)
    details = {
        "benchmark": gallery.benchmark,
        "model": {"name": name, "network": embeddings.spec.name, "digest": embeddings.model},
        "protocol": protocol(data_set or params.data.name, gallery, embeddings),
        "repeated_texts": gallery.repeated_texts,
        "metrics": summary,
        "by": answers.breakdowns(answered, ks, resamples, params.seed),
    }
    hidden = {f"r{k}" for k in ks if k not in HEADLINE_KS} if set(ks) & set(HEADLINE_KS) else set()
    headline = {key: one["mean"] for key, one in summary.items() if key.rsplit("_", 1)[1] not in hidden}
    log.info("%s: %s: %s", name, gallery.benchmark, ", ".join(f"{k} {v:.2f}" for k, v in headline.items()))
    return Measured(gallery.benchmark, answered, details, headline)


def _write(folder: Path, measured: Sequence[Measured], missing: Mapping[str, str]) -> None:
    files.make_folder(folder / "ranks")
    for one in measured:
        manifest.write_table(one.answers, folder / "ranks" / f"{one.benchmark}.parquet")
        files.write_json(one.details, folder / "details" / f"{one.benchmark}.json")
        counts = {name: one.details["protocol"][name] for name in ("images", "texts")}
        files.write_json(counts | one.headline, folder / f"{one.benchmark}.json")
    for benchmark, reason in missing.items():
        (folder / "ranks" / f"{benchmark}.parquet").unlink(missing_ok=True)
        content = {"benchmark": benchmark, "missing": reason}
        files.write_json(content, folder / "details" / f"{benchmark}.json")
        files.write_json({"images": 0, "texts": 0}, folder / f"{benchmark}.json")


def protocol(data_set: str, gallery: Gallery, embeddings: EmbeddingTable) -> dict[str, str | int]:
    """What a number hangs on besides the model; only numbers of one protocol stand in one table."""
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


def _settings(params: "Params") -> Settings:
    device = devices.resolve(params.train.device, "train.device")
    return Settings(device.type, params.evaluate.batch_size, params.data.max_megapixels)
