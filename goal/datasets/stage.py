"""The data stage: one source, named in params, becomes data/<name>/ wholly or not at all."""

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from goal import layout
from goal.datasets import Collected, Source, manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.files import replace_folder, write_json

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)


def _scenes() -> Source:
    from goal.datasets import scenes

    return scenes.collect


def _folder() -> Source:
    from goal.datasets import folder

    return folder.collect


def _docci() -> Source:
    from goal.datasets import docci

    return docci.collect


def _dci() -> Source:
    from goal.datasets import dci

    return dci.collect


def _sharegpt4v() -> Source:
    from goal.datasets import sharegpt4v

    return sharegpt4v.collect


def _urban1k() -> Source:
    from goal.datasets import urban1k

    return urban1k.collect


def _coco() -> Source:
    from goal.datasets import coco

    return coco.collect


def _flickr30k() -> Source:
    from goal.datasets import flickr30k

    return flickr30k.collect


def _goal_lists() -> Source:
    from goal.datasets import goal_lists

    return goal_lists.collect


# Imported only when asked for: sources differ in what they need installed.
SOURCES: dict[str, Callable[[], Source]] = {
    "scenes": _scenes,
    "folder": _folder,
    "docci": _docci,
    "dci": _dci,
    "sharegpt4v": _sharegpt4v,
    "urban1k": _urban1k,
    "coco": _coco,
    "flickr30k": _flickr30k,
    "goal_lists": _goal_lists,
}


def run(params: "Params") -> None:
    """Write data/<name>/: {train,val,test}.parquet, rejected.parquet, summary.json, and what else it has.

    Raises UserError, and leaves data/<name>/ as it was, where the source or the disk fails.
    """
    if params.data.source not in SOURCES:
        raise UserError(
            f"params.yaml: data.source: {params.data.source} is not built in; one of {list(SOURCES)}"
        )
    target = layout.data_dir(params.data.name)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        collected = SOURCES[params.data.source]()(params, partial)
        summary = _write(collected, partial)
        replace_folder(partial, target)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: {error.strerror or error}; mend it and run again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = ", ".join(f"{split} {summary['splits'][split]['images']}" for split in manifest.SPLITS)
    log.info("%s: pictures: %s; rejected rows: %d", target, counts, len(collected.rejected))
    for reason, count in summary["rejected"].items():
        log.info("  %d x %s (%s)", count, reason, target / "rejected.parquet")


def _write(collected: Collected, folder: Path) -> dict:
    for split in manifest.SPLITS:
        manifest.write(collected.splits.get(split, []), folder / f"{split}.parquet")
    for name, rows in collected.tables.items():
        manifest.write_table(rows, folder / f"{name}.parquet")
    rejected = manifest.table(collected.rejected, manifest.REJECTED)
    manifest.write_table(rejected, folder / "rejected.parquet")
    summary = {
        "splits": {split: _counts(collected.splits.get(split, [])) for split in manifest.SPLITS},
        "tables": {name: rows.num_rows for name, rows in sorted(collected.tables.items())},
        "rejected": dict(sorted(Counter(row.reason for row in collected.rejected).items())),
    }
    write_json(summary, folder / "summary.json")
    return summary


def _counts(rows: list[Row]) -> dict[str, float]:
    words = [len(caption.split()) for row in rows for caption in row.captions]
    mean = round(sum(words) / len(words), 1) if words else 0.0
    return {"images": len(rows), "captions": len(words), "words_per_caption": mean}
