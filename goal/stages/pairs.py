"""The `pairs` stage: every sentence with the region it describes (LISM, second half), counted and drawn."""

import json
import logging
from pathlib import Path

from goal import clip, language, weights
from goal.config import Params, paths
from goal.datasets import slices
from goal.errors import UserError
from goal.mining import shards
from goal.mining import summary as mining_summary
from goal.mining.matching import Match
from goal.reporting import contact_sheet
from goal.runtime import files

log = logging.getLogger(__name__)

BASE = "base"
# The split that the contact sheet draws from.
SHOWN = "train"
# Pictures whose captions show the language.
SAMPLE = 500


def run(params: Params) -> None:
    """Write pairs/<split>/ for every split of `regions.splits`, and pairs/contact-sheet.png.

    A shard holds one row a sentence, usable or not (goal.mining.mined.PAIRS). Regions are read, never
    made anew. Started again after a kill it goes on with the shards that are missing. Raises UserError
    where an input is missing or does not fit, or the disk refuses.
    """
    matcher = _weights(params)
    digest, boxes = files.digest(matcher), paths.manifest(params.data.name, "boxes")
    size, workers = params.pairs.shard_size, params.pairs.workers
    for split in params.regions.splits:
        manifest, regions = paths.manifest(params.data.name, split), paths.regions_dir(split)
        captions = [caption for row in slices.rows(manifest, 0, SAMPLE) for caption in row.captions]
        if doubt := language.doubt(captions, params.pairs.sentences):
            log.warning("%s: %s", manifest, doubt)
        work = Match(
            manifest=str(manifest.resolve()),
            regions=str(regions.resolve()),
            region_shard=_region_shard(regions, manifest),
            matcher=str(matcher.resolve()),
            digest=digest,
            params=params.pairs.model_dump_json(),
            max_megapixels=params.data.max_megapixels,
            root=str(Path.cwd()),
            boxes=str(boxes.resolve()) if boxes.exists() else "",
        )
        mined = [files.digest(path) for path in sorted(regions.glob("shard-*.parquet"))]
        inputs = (
            slices.content(manifest),
            *mined,
            digest,
            *([files.digest(boxes)] if boxes.exists() else []),
            # How many work at it, and what is drawn of it, changes no shard.
            params.pairs.model_dump_json(exclude={"workers", "contact_sheet"}),
            str(work.max_megapixels),
        )
        folder = shards.working_folder("pairs", split, *inputs)
        with shards.held(folder, f"pairs {split}"):
            written = shards.run(work, slices.count(manifest), size, folder, workers, f"pairs {split}")
            summary = mining_summary.of(written, params.data.name)
            shards.publish(written, summary, paths.pairs_dir(split))
            shards.forget_others(folder)
            if split == SHOWN:
                sheet = paths.pairs_dir(split).parent / "contact-sheet.png"
                shown = params.pairs.contact_sheet
                contact_sheet.write(written, manifest, shown, work.max_megapixels, sheet)
        log.info("%s: %s", paths.pairs_dir(split), mining_summary.line(summary))


def _weights(params: Params) -> Path:
    """The matcher's weights as a file that any process can read."""
    name = params.pairs.matcher
    if name == BASE:
        return weights.file_of(paths.model_dir("zero-shot"))
    # Downloaded or converted once, here, so that the workers need no network.
    file = paths.work_dir("matcher") / f"{name.replace('/', '_')}.safetensors"
    return weights.save(clip.load(name, None), file)


def _region_shard(regions: Path, manifest: Path) -> int:
    """Pictures a shard of regions; raises UserError where they were not made for this manifest."""
    path = regions / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; `dvc repro regions` writes it") from error
    if summary["manifest"] != files.digest(manifest):
        raise UserError(f"{regions}: made for another {manifest}; `dvc repro regions` makes it anew")
    return summary["shard_size"]
