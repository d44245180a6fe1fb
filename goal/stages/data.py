"""The data stage: one source, named in params, becomes data/<name>/ wholly or not at all."""

import logging
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from goal.config import paths
from goal.datasets import dci, docci, folder, goal_lists, karpathy, manifest, scenes, sharegpt4v, urban1k
from goal.datasets.manifest import Collected, Row, Source
from goal.datasets.released import collect
from goal.errors import UserError
from goal.runtime.files import replace_folder, write_json

if TYPE_CHECKING:
    from goal.config import Data, Params

log = logging.getLogger(__name__)


SOURCES: dict[str, Source] = {
    "scenes": scenes.collect,
    "folder": folder.collect,
    "docci": partial(collect, docci.read),
    "dci": partial(collect, dci.read),
    "sharegpt4v": partial(collect, sharegpt4v.read),
    "urban1k": partial(collect, urban1k.read),
    "coco": partial(collect, karpathy.coco),
    "flickr30k": partial(collect, karpathy.flickr30k),
    "goal_lists": goal_lists.collect,
}


def run(params: "Params", accept_rejected: bool = False) -> None:
    """Write data/<name>/: {train,val,test}.parquet, rejected.parquet, summary.json, and what else it has.

    accept_rejected: however many rows cannot be used; else data.max_rejected is the limit. Raises UserError,
    and leaves data/<name>/ as it was, where the source or the disk fails.
    """
    if accept_rejected:
        params = params.model_copy(update={"data": params.data.model_copy(update={"max_rejected": 1.0})})
    target = paths.data_dir(params.data.name)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        collected = SOURCES[params.data.source](params, partial)
        summary = _write(collected, partial, params.data)
        replace_folder(partial, target)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: {error.strerror or error}; fix it and run again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = ", ".join(f"{split} {summary['splits'][split]['images']}" for split in manifest.SPLITS)
    log.info("%s: pictures: %s; rejected rows: %d", target, counts, len(collected.rejected))
    log.info("  %d captions changed by the cleaning of encodings and HTML entities", collected.cleaned)
    if collected.tagged:
        log.info("  %d captions had tags of HTML, which were taken out", collected.tagged)
    if copied := summary["copies"]["pictures"]:
        log.info("  %d pictures are copies of others", copied)
    if across := summary["copies"]["in_another_split"]:
        log.warning("  %d pictures are in another split than the first that shows the same", across)
    for reason, count in summary["rejected"].items():
        log.info("  %d x %s (%s)", count, reason, target / "rejected.parquet")


def _write(collected: Collected, target: Path, data: "Data") -> dict:
    for split in manifest.SPLITS:
        manifest.write(collected.splits.get(split, []), target / f"{split}.parquet")
    for name, rows in collected.tables.items():
        manifest.write_table(rows, target / f"{name}.parquet")
    rejected = manifest.table(collected.rejected, manifest.REJECTED)
    manifest.write_table(rejected, target / "rejected.parquet")
    summary = {
        # Whose numbers these are: `goal check` shows them for no other data.
        "source": data.source,
        "path": data.path,
        "splits": {split: _counts(collected.splits.get(split, [])) for split in manifest.SPLITS},
        "tables": {name: rows.num_rows for name, rows in sorted(collected.tables.items())},
        "rejected": dict(sorted(Counter(row.reason for row in collected.rejected).items())),
        "captions_cleaned": collected.cleaned,
        "captions_with_html": collected.tagged,
        "copies": _copies(collected),
    }
    write_json(summary, target / "summary.json")
    return summary


def _copies(collected: Collected) -> dict[str, int]:
    """How many pictures show the same as one before them, and how many of these in another split than it."""
    split_of: dict[str, str] = {}
    copied = across = 0
    for split, rows in collected.splits.items():
        for row in rows:
            # Where the source has not looked for near copies, those of a file count.
            alike = collected.first_alike.get(row.id, row.digest)
            copied += alike in split_of
            across += split_of.setdefault(alike, split) != split
    return {"pictures": copied, "in_another_split": across}


def _counts(rows: list[Row]) -> dict[str, float]:
    words = [len(caption.split()) for row in rows for caption in row.captions]
    mean = round(sum(words) / len(words), 1) if words else 0.0
    return {"images": len(rows), "captions": len(words), "words_per_caption": mean}
