"""What a digest of every picture's content costs the data stage, in pictures a second on all cores.

    python -m benchmarks.picture_digest                     # photographs that are made up, 640 x 480 pixels
    python -m benchmarks.picture_digest --folder FOLDER     # your own JPEG photographs, in turn

Both ways decode every picture and differ in `data.digest` alone. The rounds alternate; the median counts.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import figures, photographs
from goal.datasets import images

KINDS = (images.STAT, images.CONTENT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given = (
            sorted(options.folder.glob("*.jp*g")) if options.folder else photographs.made_up(Path(scratch))
        )
        files = [given[number % len(given)] for number in range(options.pictures)]
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(options.rounds):
            for kind in KINDS:
                start = time.perf_counter()
                images.probe_all(files, photographs.MEGAPIXELS, kind, kind)
                seconds[kind].append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in files) / len(files)
    rates = {kind: len(files) / median(took) for kind, took in seconds.items()}
    found = [(f"pictures a second, {kind}", rate) for kind, rate in rates.items()]
    found.append(("content / size_and_mtime", rates[images.CONTENT] / rates[images.STAT]))
    settings = {
        "pictures": len(files),
        "different": len(given),
        "kB a picture": round(size / 1e3, 1),
        "rounds": options.rounds,
    }
    figures.tell(
        "picture_digest", "made up" if options.folder is None else options.folder.name, settings, found
    )


if __name__ == "__main__":
    main()
