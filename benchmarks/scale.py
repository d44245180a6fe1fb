"""Mining at scale: what a second worker brings, and time and memory as the rows grow.

    python -m benchmarks.scale                 # all parts: a Markdown table, and work/benchmarks/scale.json
    python -m benchmarks.scale workers         # some of: workers rows

| part | measures |
|---|---|
| workers | regions of scenes by one worker of one thread and by two, the start of the processes included |
| rows | regions and pairs of 1k, 10k and 100k tiny pictures: seconds, and peak memory of the process |

Each measurement is a process of its own.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import mining
from goal import layout, pairs
from goal.regions import stage as regions

RESULTS = Path("work/benchmarks/scale.json")
MEGABYTE = 1024  # of ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all by default")
    parser.add_argument("--scenes", type=int, default=1000, help="pictures of `workers`")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--child", nargs=2, default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        part, size = arguments.child
        print(json.dumps(CHILDREN[part](int(size), arguments.scenes)))
        return
    results = {}
    print("| measured | value |\n|---|---|")
    for part in arguments.parts or PARTS:
        results[part] = dict(_told(PARTS[part](arguments)))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def workers(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    one, two = (_child("workers", count, arguments.scenes) for count in (1, 2))
    if one["bytes"] != two["bytes"]:
        raise SystemExit("two workers wrote other bytes than one")
    yield "one worker, pictures a second", arguments.scenes / one["seconds"]
    yield "two workers, times faster (same bytes)", one["seconds"] / two["seconds"]


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    peaks = {}
    for count in arguments.rows:
        measured = _child("rows", count, arguments.scenes)
        peaks[count] = measured["megabytes"]
        yield f"{count} rows, regions, ms a row", 1000 * measured["regions"] / count
        yield f"{count} rows, pairs, ms a row", 1000 * measured["pairs"] / count
        yield f"{count} rows, peak memory, MB", measured["megabytes"]
    fewer, most = sorted(peaks)[-2:] if len(peaks) > 1 else (max(peaks), max(peaks))
    yield f"memory growth from {fewer} to {most} rows, MB", peaks[most] - peaks[fewer]


def _work(count: int, scenes: int) -> dict:
    mining.scenes(scenes, 128)
    given = mining.params(regions={"workers": count, "sources": ["felzenszwalb"], "shard_size": 100})
    started = time.perf_counter()
    regions.run(given)
    seconds = time.perf_counter() - started
    content = hashlib.sha256()
    for path in sorted(layout.regions_dir(mining.SPLIT).iterdir()):
        content.update(path.read_bytes())
    return {"seconds": seconds, "bytes": content.hexdigest()}


def _grow(count: int, scenes: int) -> dict:
    mining.tiny(count)
    given = mining.params(regions={"sources": ["fixed"], "shard_size": 1000}, pairs={"shard_size": 1000})
    seconds = []
    for run in (regions.run, pairs.run):
        started = time.perf_counter()
        run(given)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE
    return {"regions": seconds[0], "pairs": seconds[1], "megabytes": peak}


def _child(part: str, size: int, scenes: int) -> dict:
    program = [sys.executable, "-m", "benchmarks.scale", "--child", part, str(size), "--scenes", str(scenes)]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True, cwd=mining.ROOT)
    return json.loads(done.stdout)


def _in_a_folder(measure):
    def measured(size: int, scenes: int) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            mining.enter(Path(folder))
            return measure(size, scenes)

    return measured


def _told(found: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    for name, value in found:
        print(f"| {name} | {value:.4g} |", flush=True)
        yield name, value


PARTS = {"workers": workers, "rows": rows}
CHILDREN = {"workers": _in_a_folder(_work), "rows": _in_a_folder(_grow)}

if __name__ == "__main__":
    main()
