"""Reading pictures inside Parquet and WebDataset files, against the loops of the libraries that are for it.

    python -m benchmarks.read_shapes                     # 20,000 rows, pictures that are made up
    python -m benchmarks.read_shapes --rows 100000

Each way goes once through all rows and decodes every picture to RGB, in a process of its own. The rounds
alternate; the median counts. `datasets` and `webdataset` are compared where they are installed.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import figures
from goal.datasets import shapes
from goal.datasets.columns import Columns
from goal.datasets.images import open_image

SHARD, GROUP, MEGAPIXELS = 1000, 100, 200.0
DIFFERENT = 200


def make(folder: Path, rows: int, side: int) -> None:
    """The same pictures in both shapes: shards of SHARD rows, row groups as `datasets` writes them."""
    draw, pictures = np.random.default_rng(0), []
    for _ in range(DIFFERENT):
        coarse = draw.integers(0, 256, (16, 16, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(
            content, "JPEG", quality=90
        )
        pictures.append(content.getvalue())
    for name in ("parquet", "webdataset"):
        (folder / name).mkdir()
    for first in range(0, rows, SHARD):
        taken = [(n, pictures[n % DIFFERENT]) for n in range(first, min(first + SHARD, rows))]
        table = pa.table(
            {
                "image": [{"bytes": content, "path": f"{n}.jpg"} for n, content in taken],
                "caption": [f"Caption {n}." for n, _ in taken],
            }
        )
        pq.write_table(table, folder / f"parquet/train-{first // SHARD:05}.parquet", row_group_size=GROUP)
        with tarfile.open(folder / f"webdataset/{first // SHARD:05}.tar", "w") as tar:
            for n, content in taken:
                for ending, part in (("jpg", content), ("txt", f"Caption {n}.".encode())):
                    member = tarfile.TarInfo(f"{n:09}.{ending}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))


def ours(folder: Path) -> Iterator[Image.Image]:
    found = shapes.find(folder, Columns())
    return (open_image(found.pictures / line.values["image"], MEGAPIXELS) for line in found.lines)


def by_datasets(folder: Path) -> Iterator[Image.Image]:
    from datasets import Image as Picture
    from datasets import load_dataset

    files = sorted(map(str, folder.glob("*.parquet")))
    rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
    return (row["image"].convert("RGB") for row in rows.cast_column("image", Picture()))


def by_webdataset(folder: Path) -> Iterator[Image.Image]:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    rows = (
        webdataset.WebDataset(files, shardshuffle=False, empty_check=False)
        .decode("pil")
        .to_tuple("jpg", "txt")
    )
    return (picture for picture, _ in rows)


WAYS: dict[str, dict[str, Callable[[Path], Iterator[Image.Image]]]] = {
    "parquet": {"ours": ours, "datasets": by_datasets},
    "webdataset": {"ours": ours, "webdataset": by_webdataset},
}


def once(folder: Path, shape: str, way: str) -> dict[str, float]:
    """Go through all rows in this process; the clock starts at the first picture, after all imports."""
    pictures = iter(WAYS[shape][way](folder / shape))
    next(pictures).load()
    start = time.perf_counter()
    count = sum(1 for picture in pictures if picture.load())
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"pictures": count + 1, "rate": count / seconds, "MiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        folder, shape, way = options.once
        print(json.dumps(once(Path(folder), shape, way)))
        return
    found: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), options.rows, options.side)
        for shape, ways in WAYS.items():
            here = [way for way in ways if way == "ours" or find_spec(way)]
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in here}
            for _ in range(options.rounds):
                for way in here:
                    command = [sys.executable, "-m", "benchmarks.read_shapes", "--once", scratch, shape, way]
                    home = os.environ | {"HF_HOME": scratch, "HF_DATASETS_OFFLINE": "1"}
                    said = subprocess.run(command, check=True, env=home, stdout=subprocess.PIPE).stdout
                    runs[way].append(json.loads(said.splitlines()[-1]))
                    assert runs[way][-1]["pictures"] == options.rows
            rates = {way: median(run["rate"] for run in done) for way, done in runs.items()}
            found += [(f"{shape}: pictures a second, {way}", rate) for way, rate in rates.items()]
            found += [
                (f"{shape}: MiB at most, {way}", max(run["MiB"] for run in done))
                for way, done in runs.items()
            ]
            found += [(f"{shape}: ours / {way}", rates["ours"] / rates[way]) for way in here if way != "ours"]
    settings = {"rows": options.rows, "pixels": options.side, "rounds": options.rounds}
    figures.tell("read_shapes", "made up", settings, found)


if __name__ == "__main__":
    main()
