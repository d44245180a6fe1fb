"""Matching: crops batched across pictures and sentences by length, against one picture at a time.

    python -m benchmarks.pairs                 # scenes' network on a CPU; benchmarks/results/pairs.json
    python -m benchmarks.pairs --network ViT-L-14-336 --device cuda          # the paper's matcher

Both ways run in this process with one thread over the same regions of the same scenes, with the same network
(random weights: its time does not depend on them), and must choose the same boxes. The network reads 77
tokens, as the paper's matcher does: a plain way that padded to 248 would encode three times as many.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from benchmarks import figures, mining
from goal import boxes, clip, text, weights
from goal.config import paths
from goal.datasets import images, manifest
from goal.datasets.manifest import Row
from goal.mining.matching import Match
from goal.mining.mined import SIDES
from goal.model.architectures import SCENES
from goal.model.network import GoalClip
from goal.runtime import devices
from goal.stages import regions

SOURCES = ["felzenszwalb", "fixed"]
# Tokens that OpenAI's CLIP reads, BOS and EOS included.
CONTEXT = 77


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=200, help="pictures")
    parser.add_argument("--network", default=SCENES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = vars(arguments) | {"context_length": CONTEXT}
    if arguments.device == "cuda":
        settings = settings | {"device": torch.cuda.get_device_name()}
    with tempfile.TemporaryDirectory() as folder:
        mining.enter(Path(folder), arguments.network, CONTEXT)
        mining.scenes(arguments.scenes, 128)
        found = measure(arguments.scenes, arguments.device).items()
    figures.tell("pairs", f"{arguments.network} ({arguments.device})", settings, found)


def measure(scenes: int, device: str) -> dict[str, float]:
    given = mining.params(device, regions={"sources": SOURCES})
    regions.run(given)
    work = Match(
        manifest=str(paths.manifest(mining.NAME, mining.SPLIT)),
        regions=str(paths.regions_dir(mining.SPLIT)),
        region_shard=given.regions.shard_size,
        matcher=str(weights.file_of(paths.model_dir("zero-shot"))),
        digest=weights.digest(paths.model_dir("zero-shot")),
        params=given.pairs.model_dump_json(),
        max_megapixels=given.data.max_megapixels,
        root=".",
    )
    rows = manifest.read(paths.manifest(mining.NAME, mining.SPLIT))
    # What is done once a process (weights, the tokenizer's words) is not part of the comparison.
    model = weights.load(paths.model_dir("zero-shot")).eval().to(devices.resolve(device, "--device"))
    work(0, scenes)
    one_at_a_time(model, rows[:2])
    batched, table = _timed(lambda: work(0, scenes))
    single, plain = _timed(lambda: one_at_a_time(model, rows))
    found = {
        (line["id"], line["sentence"]): tuple(line[side] for side in SIDES) for line in table.to_pylist()
    }
    same = sum(found[key] == plain[key] for key in plain) / len(plain)
    crops = scenes + sum(map(len, _regions().values()))
    return {
        "crops a picture, the whole included": crops / scenes,
        "sentences a picture": len(plain) / scenes,
        "batched, ms a crop": 1000 * batched.wall / crops,
        "batched, pictures a second": scenes / batched.wall,
        "one picture at a time, pictures a second": scenes / single.wall,
        "batched, times faster": single.wall / batched.wall,
        "batched, times less processor time": single.processor / batched.processor,
        "sentences with the same box, %": 100 * same,
    }


class Seconds(NamedTuple):
    """By the clock, and of the processor: the latter hardly sees what else the machine does."""

    wall: float
    processor: float


def _timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor), result


@torch.inference_mode()
def one_at_a_time(model: GoalClip, rows: Iterable[Row]) -> dict[tuple[str, int], tuple]:
    """Each picture's crops in one batch, each sentence padded to the context, as the release has it."""
    found = _regions()
    chosen = {}
    for row in rows:
        chosen |= _match(model, row, [(0.0, 0.0, float(row.width), float(row.height)), *found[row.id]])
    return chosen


def _match(model: GoalClip, row: Row, candidates: list[tuple]) -> dict[tuple[str, int], tuple]:
    see, context = clip.preprocess(model.spec), model.spec.context_length
    device = model.logit_scale.device
    image = images.open_image(Path(row.image), 200)
    crops = torch.stack([see(image.crop(boxes.pixels(box, image.size))) for box in candidates])
    sentences = text.split_sentences(row.captions[0])
    ids = torch.zeros(len(sentences), context, dtype=torch.long)
    for number, one in enumerate(sentences):
        tokens = text.tokenize(one.text, [], context).ids
        ids[number, : len(tokens)] = tokens
    seen = model.encode_images(crops.to(device), normalize=True)
    cosines = seen @ model.encode_texts(ids.to(device), normalize=True).T
    return {(row.id, number): candidates[best] for number, best in enumerate(cosines.argmax(0).tolist())}


def _regions() -> dict[str, list[tuple]]:
    found = defaultdict(list)
    for path in sorted(paths.regions_dir(mining.SPLIT).glob("shard-*.parquet")):
        for line in pq.read_table(path).to_pylist():
            box = tuple(line[side] for side in SIDES)
            if boxes.pixels(box, (128, 128)) != (0, 0, 128, 128):
                found[line["id"]].append(box)
    return found


if __name__ == "__main__":
    main()
