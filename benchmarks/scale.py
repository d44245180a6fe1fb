"""Mining at scale: what a second worker brings, time and memory as the rows grow, what a row takes.

    python -m benchmarks.scale                 # all parts; figures in benchmarks/results/scale.json
    python -m benchmarks.scale workers         # some of: workers rows storage held
    python -m benchmarks.scale storage --folder photos

| part | measures |
|---|---|
| workers | regions of scenes by one worker of one thread and by two, the start of the processes included |
| rows | regions and pairs of 1k, 10k and 100k tiny pictures: seconds, and peak memory of the process |
| storage | bytes of the shards of regions and pairs: of scenes, or of a folder of photographs with captions |
| held | bytes of memory for a row of a manifest in `data`, and for a picture in `train` |

Each measurement is a process of its own.
"""

import argparse
import hashlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import torch

from benchmarks import figures, mining
from goal.config import paths
from goal.datasets import manifest, scenes_layout, scenes_words, slices
from goal.datasets.manifest import Row
from goal.model.architectures import spec_of
from goal.runtime import devices
from goal.stages import pairs, regions
from goal.text import split_sentences
from goal.training.examples import Examples, Needs, Pair

MEGABYTE = 1e6
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all by default")
    parser.add_argument("--scenes", type=int, default=1000, help="pictures of `workers` and `storage`")
    parser.add_argument("--folder", default="", help="photographs and captions.jsonl, for `storage`")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument(
        "--held", type=int, default=10_000, help="rows of `held`; measured with as many again"
    )
    parser.add_argument("--child", nargs=2, default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        part, size = arguments.child
        with tempfile.TemporaryDirectory() as folder:
            mining.enter(Path(folder))
            print(json.dumps(CHILDREN[part](int(size), arguments)))
        return
    for part in arguments.parts or PARTS:
        settings = {name: getattr(arguments, name) for name in SETTINGS[part]}
        if part == "storage" and arguments.folder:
            figures.tell("scale", "storage (photographs)", {}, storage(arguments))
        else:
            figures.tell("scale", part, settings, PARTS[part](arguments))


def workers(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    one, two = (_child("workers", count, arguments) for count in (1, 2))
    if one["bytes"] != two["bytes"]:
        raise SystemExit("two workers wrote other bytes than one")
    yield "one worker, pictures a second", arguments.scenes / one["seconds"]
    yield "two workers, times faster (same bytes)", one["seconds"] / two["seconds"]


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    peaks = {}
    for count in arguments.rows:
        measured = _child("rows", count, arguments)
        peaks[count] = measured["megabytes"]
        yield f"{count} rows, regions, ms a row", 1000 * measured["regions"] / count
        yield f"{count} rows, pairs, ms a row", 1000 * measured["pairs"] / count
        yield f"{count} rows, peak memory, MB", measured["megabytes"]
    fewer, most = sorted(peaks)[-2:] if len(peaks) > 1 else (max(peaks), max(peaks))
    yield f"memory growth from {fewer} to {most} rows, MB", peaks[most] - peaks[fewer]


def storage(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    yield from _child("storage", 0, arguments).items()


def held(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    few, many = (_child("held", count, arguments) for count in (arguments.held, 2 * arguments.held))
    for name, value in few.items():
        yield name, (many[name] - value) / arguments.held


PARTS = {"workers": workers, "rows": rows, "storage": storage, "held": held}
SETTINGS = {"workers": ["scenes"], "rows": ["rows"], "storage": ["scenes"], "held": ["held"]}


def _work(count: int, arguments: argparse.Namespace) -> dict[str, float | str]:
    mining.scenes(arguments.scenes, 128)
    given = mining.params(regions={"workers": count, "sources": ["felzenszwalb"], "shard_size": 100})
    started = time.perf_counter()
    regions.run(given)
    seconds = time.perf_counter() - started
    content = hashlib.sha256()
    for path in sorted(paths.regions_dir(mining.SPLIT).iterdir()):
        content.update(path.read_bytes())
    return {"seconds": seconds, "bytes": content.hexdigest()}


def _grow(count: int, arguments: argparse.Namespace) -> dict[str, float]:
    _elsewhere(mining.tiny, count)
    given = mining.params(regions={"sources": ["fixed"], "shard_size": 1000}, pairs={"shard_size": 1000})
    seconds = []
    devices.forget_peak(CPU)
    for run in (regions.run, pairs.run):
        started = time.perf_counter()
        run(given)
        seconds.append(time.perf_counter() - started)
    return {"regions": seconds[0], "pairs": seconds[1], "megabytes": devices.peak(CPU) / MEGABYTE}


def _store(_: int, arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.folder:
        mining.photographs(Path(arguments.folder))
    else:
        mining.scenes(arguments.scenes, 128)
    count = slices.count(paths.manifest(mining.NAME, mining.SPLIT))
    sources = ["felzenszwalb", "fixed"]
    given = mining.params(regions={"sources": sources, "shard_size": 1000}, pairs={"shard_size": 1000})
    regions.run(given)
    pairs.run(given)
    found = {}
    for thing, folder in (
        ("region", paths.regions_dir(mining.SPLIT)),
        ("sentence", paths.pairs_dir(mining.SPLIT)),
    ):
        shards = sorted(folder.glob("shard-*.parquet"))
        lines = sum(pq.read_metadata(path).num_rows for path in shards)
        found[f"{thing}s a picture"] = lines / count
        found[f"bytes a {thing}"] = sum(path.stat().st_size for path in shards) / lines
    size = paths.manifest(mining.NAME, mining.SPLIT).stat().st_size
    return found | {"pictures": count, "bytes a row of the manifest": size / count}


def _hold(count: int, arguments: argparse.Namespace) -> dict[str, float]:
    _elsewhere(_long_captions, count)
    before = psutil.Process().memory_info().rss
    known = manifest.read(paths.manifest(mining.NAME, mining.SPLIT))
    read = psutil.Process().memory_info().rss
    mined = {}
    for row in known:
        first = split_sentences(row.captions[0])[0]
        mined[row.id] = [Pair(0, 0, first.start, first.end, (0.0, 0.0, 64.0, 64.0), 0.3)]
    needs = Needs(crops=True, sentences=True, short=False)
    examples = Examples(known, mined, spec_of("ViT-B-16"), needs, 0, 200.0, 0.25)
    trained = psutil.Process().memory_info().rss
    assert len(examples) == count  # all of it is still there
    return {
        "words a caption": sum(len(row.captions[0].split()) for row in known),
        "data: bytes a row": read - before,
        "train: bytes a picture": trained - before,
    }


def _long_captions(count: int) -> None:
    """Rows with long captions of scenes, whose pictures are not drawn."""
    found = []
    for number in range(count):
        streams = [scenes_layout.stream(0, mining.SPLIT, number, purpose) for purpose in ("layout", "words")]
        caption, _ = scenes_words.long_caption(scenes_layout.draw(streams[0], 3, 6), streams[1])
        path = str(paths.data_dir(mining.NAME) / "images" / f"{number:08d}.png")
        found.append(Row(f"{number:08d}", path, 128, 128, (caption,), "scenes"))
    manifest.write(found, paths.manifest(mining.NAME, mining.SPLIT))


def _elsewhere(make: Callable[[int], None], count: int) -> None:
    """Make data in a process of its own: its memory is not what is measured."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=(count,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


CHILDREN = {"workers": _work, "rows": _grow, "storage": _store, "held": _hold}


def _child(part: str, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--child", part, str(size)]
    command += ["--scenes", str(arguments.scenes)]
    if arguments.folder:
        command += ["--folder", str(Path(arguments.folder).resolve())]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=mining.ROOT)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
