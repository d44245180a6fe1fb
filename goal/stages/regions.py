"""The `regions` stage: the regions of every picture of the splits, in shards (LISM, first half)."""

import logging
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from goal import config
from goal.config import Params, paths
from goal.config.schema import REGION_SOURCES
from goal.datasets import given_boxes, prefetch, slices
from goal.datasets.images import ImageError
from goal.datasets.manifest import Row
from goal.mining import reading, shards
from goal.mining.mined import REGIONS, SIDES
from goal.regions import GIVEN, Proposer, Region, build, checkpoints, with_weights
from goal.runtime import files, pool, task_progress

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write regions/<split>/ for every split of `regions.splits`: shards and summary.json.

    A shard holds one row a region, sorted by picture, in the order of the sources. Started again after a kill
    it goes on with the shards that are missing. Raises UserError where an input is missing or the disk
    refuses.
    """
    # Fetched once, here, so that the workers need no network.
    given = with_weights(params.regions)
    weights = tuple(files.digest(path) for path in checkpoints(given))
    boxes = given_boxes.file_of(params.data.name) if GIVEN in given.sources else None
    own = (files.digest(boxes),) if boxes else ()
    for split in params.regions.splits:
        manifest = paths.manifest(params.data.name, split)
        work = Propose(
            str(manifest.resolve()),
            given.model_dump_json(),
            weights,
            params.data.max_megapixels,
            str(Path.cwd()),
            str(boxes.resolve()) if boxes else "",
        )
        rows = slices.count(manifest)
        # No shard depends on the number of workers, other splits, where the weights lie, or unused sources.
        aside = {"workers": True, "splits": True, "sam": {"checkpoint"}, "detector": {"checkpoint"}}
        unused = {name: True for name in get_args(REGION_SOURCES) if name not in params.regions.sources}
        decisive = params.regions.model_dump_json(exclude=aside | unused)
        content = (slices.content(manifest), decisive, *weights, *own, str(work.max_megapixels))
        folder = shards.working_folder("regions", split, *content)
        size, workers = params.regions.shard_size, params.regions.workers
        with shards.held(folder, f"regions {split}"):
            written = shards.run(work, rows, size, folder, workers, f"regions {split}")
            summary = {"manifest": files.digest(manifest), "shard_size": size, **_summary(written)}
            shards.publish(written, summary, paths.regions_dir(split))
            shards.forget_others(folder)
        log.info(
            "%s: %d regions in %d pictures (%d unreadable)",
            paths.regions_dir(split),
            summary["regions"],
            summary["pictures"],
            sum(summary["unreadable"].values()),
        )


@dataclass(frozen=True)
class Propose:
    """Work on a shard: its pictures' regions.

    params: the section `regions` as JSON, its checkpoints absolute; weights: their digests; root: the folder
    to which the manifest's paths are relative; boxes: the table of the given ones, "" where none are asked
    for.
    """

    manifest: str
    params: str
    weights: tuple[str, ...]
    max_megapixels: float
    root: str
    boxes: str = ""

    def __call__(self, start: int, stop: int) -> pa.Table:
        params, proposer = _loaded(self.params, self.weights)
        rows = slices.rows(Path(self.manifest), start, stop)
        given = given_boxes.read(Path(self.boxes), [row.id for row in rows]) if self.boxes else {}
        lines, unreadable, without = [], Counter(), 0
        for row, image in zip(rows, prefetch.ahead(self._read, rows, params.threads), strict=True):
            if isinstance(image, ImageError):
                unreadable[reading.kind(image)] += 1
            else:
                regions = proposer.propose(image, [one.box for one in given.get(row.id, ())])
                without += not regions
                lines += [_line(row.id, region) for region in regions]
            task_progress.advance(1)
        notes = {"pictures": len(rows), "without_region": without, "unreadable": unreadable}
        return shards.with_notes(pa.Table.from_pylist(lines, REGIONS), notes)

    def _read(self, row: Row) -> np.ndarray | ImageError:
        image = reading.picture(row, Path(self.root), self.max_megapixels)
        return image if isinstance(image, ImageError) else np.asarray(image)


@lru_cache(maxsize=1)
def _loaded(section: str, weights: tuple[str, ...]) -> tuple[config.Regions, Proposer]:
    """The parameters and the sources, loaded once a process, and anew where the weights are others."""
    params = config.Regions.model_validate_json(section)
    for path, known in zip(checkpoints(params), weights, strict=True):
        files.expect(path, known)
    return params, build(params, pool.number())


def _line(name: str, region: Region) -> dict[str, object]:
    values = {"source": region.source, "area_ratio": region.area_ratio, "score": region.score}
    return {"id": name, **dict(zip(SIDES, region.box, strict=True)), **values}


def _summary(written: list[Path]) -> dict[str, object]:
    """Counts over all shards, read one at a time."""
    sources, unreadable, totals = Counter(), Counter(), Counter()
    for path in written:
        notes = shards.read_notes(path)
        unreadable.update(notes["unreadable"])
        totals.update(pictures=notes["pictures"], without_region=notes["without_region"])
        for batch in pq.ParquetFile(path).iter_batches(columns=["source"]):
            sources.update(batch["source"].to_pylist())
    return {
        "pictures": totals["pictures"],
        "without_region": totals["without_region"],
        "unreadable": dict(sorted(unreadable.items())),
        "regions": sources.total(),
        "by_source": dict(sorted(sources.items())),
    }
