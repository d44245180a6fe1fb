"""Metrics and encoding at scale: time, memory, and ratios against the plain way, measured in one run.

    python -m benchmarks.evaluate --captions captions.json  # all; results/evaluate.json
    python -m benchmarks.evaluate joint recall              # some of: joint recall text step

`captions.json` is a list of texts, or of records with a `caption` each; without it the texts are made up.

| part | measures |
|---|---|
| joint | mAP@10 both ways of 2,000 pictures and 2,000 crops, against a plain top-k and the release's manner |
| recall | recall@{1,5,10,50} both ways of 100,000 pictures and texts: time, peak memory of the process |
| text | texts/s in sorted trimmed batches against padding to the context, the same embeddings; images/s |
| step | encoding against the forward of a training step on the same pictures and captions |

Random unit vectors, 512 wide. Threads as torch finds them.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import figures, step_cases
from goal import metrics, text
from goal.model import embedding
from goal.model.architectures import spec_of
from goal.model.network import GoalClip

WIDTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; all by default")
    parser.add_argument("--size", type=int, default=100_000, help="pictures and texts of `recall`")
    parser.add_argument("--captions", type=Path, help="for `text` and `step`")
    parser.add_argument("--count", type=int, default=256, help="captions taken, over the whole file")
    parser.add_argument("--network", default="ViT-B-16", help="random weights; `text` and `step`")
    arguments = parser.parse_args()
    captions = arguments.captions.name if arguments.captions else "made up"
    settings = vars(arguments) | {"captions": captions, "threads": torch.get_num_threads()}
    for part in arguments.parts or PARTS:
        figures.tell("evaluate", part, settings | {"parts": [part]}, PARTS[part](arguments))


def joint(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """mAP@10 of whole pictures and crops, the release's manner first."""
    count = 4000
    image, texts = _related(count)
    names = [f"photos/{number % (count // 2):06d}.jpg" for number in range(count)]
    relevant = [[number, (number + count // 2) % count] for number in range(count)]
    slow, plain = _timed(lambda: (plain_map(image, texts, names, 10), plain_map(texts, image, names, 10)))
    fast, ours = _best(
        lambda: (metrics.map_at_k(image, texts, relevant, 10), metrics.map_at_k(texts, image, relevant, 10))
    )
    yield "joint mAP@10 both ways, 2,000 + 2,000: seconds", fast
    items = torch.tensor(relevant)
    quick, top = _best(lambda: (top_k_map(image, texts, items, 10), top_k_map(texts, image, items, 10)))
    for name, seconds, others in (("plain top-k", quick, top), ("the release's manner", slow, plain)):
        yield f"{name}: seconds", seconds
        yield f"{name}: times as long", seconds / fast
        yield f"{name}: largest difference", max(abs(a - b) for a, b in zip(ours, others, strict=True))
    # What no way of ranking all items undercuts.
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        left, right = image.to(kind), texts.to(kind)
        product, _ = _best(lambda left=left, right=right: left @ right.T)
        yield f"the product of all embeddings, {kind}: seconds", product


def plain_map(query: Tensor, gallery: Tensor, names: list[str], k: int) -> float:
    """Mean average precision by full sorts, names searched in lists and loops over all items."""
    similarity = normalize(query.double(), dim=1) @ normalize(gallery.double(), dim=1).T
    total = 0.0
    for number, name in enumerate(names):
        relevant = [item for item, other in enumerate(names) if other == name]
        ranking = torch.argsort(similarity[number], descending=True).tolist()
        places = sorted(ranking.index(item) for item in relevant)
        hits, precision = 0, 0.0
        for place, item in enumerate(ranking):
            if item in relevant:
                hits += 1
                precision += hits / (place + 1) if places[hits - 1] < k else 0.0
        total += precision / len(relevant)
    return total / len(names)


def top_k_map(query: Tensor, gallery: Tensor, relevant: Tensor, k: int) -> float:
    """The same in whole matrices: the k nearest of each query, and which of them are relevant (Q, R).

    What one would write who has the memory for all similarities and no ties to think of.
    """
    similarity = normalize(query.double(), dim=1) @ normalize(gallery.double(), dim=1).T
    found = similarity.topk(k, dim=1).indices
    hit = (found[:, :, None] == relevant[:, None, :]).any(2)
    precision = hit.cumsum(1).double() / torch.arange(1, k + 1)
    return float(((precision * hit).sum(1) / relevant.shape[1]).mean())


def recall(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Recall of a large gallery in a process of its own, whose peak memory is read at its end."""
    command = [sys.executable, "-m", "benchmarks.evaluate_recall", str(arguments.size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    yield (
        f"recall@{{1,5,10,50}} both ways, {arguments.size:,} x {arguments.size:,}: seconds",
        found["seconds"],
    )
    yield "peak memory of the process: GiB", found["peak_gib"]
    yield "of which torch at rest: GiB", found["rest_gib"]


def encode(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Texts in the order of their length and trimmed, against all of them padded to the context."""
    model = _network(arguments)
    captions = _captions(arguments.captions, arguments.count)
    with torch.inference_mode():
        fast, (ours, counts) = _best(lambda: embedding.of_texts(model, captions, 32), times=1)
        slow, padded = _best(lambda: _padded(model, captions, 32), times=1)
    context = model.spec.context_length
    difference = (normalize(ours, dim=1) - normalize(padded, dim=1)).abs().max()
    mean = counts.clamp(max=context).double().mean()
    yield f"mean tokens of {len(captions)} captions", float(mean)
    yield "texts/s, sorted by length and trimmed", len(captions) / fast
    yield f"texts/s, padded to {context}", len(captions) / slow
    yield "times as fast", slow / fast
    yield "largest difference of a coordinate (unit vectors)", float(difference)


def step(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Encoding against the forward of a training step: both towers, texts padded, gradients kept."""
    model = _network(arguments)
    captions = _captions(arguments.captions, min(arguments.count, 64))
    size = model.spec.image_size
    images = torch.randn(len(captions), 3, size, size)
    ids = [text.tokenize(one, [], model.spec.context_length).ids for one in captions]
    with torch.inference_mode():
        pictures, _ = _best(lambda: [model.encode_images(part) for part in images.split(16)], times=2)
        texts, _ = _best(lambda: embedding.of_texts(model, captions, 16), times=2)
    padded = [text.pad(ids[start : start + 16]) for start in range(0, len(ids), 16)]

    def passes() -> None:
        # What each keeps for its gradients goes before the next one.
        for part, rows in zip(images.split(16), padded, strict=True):
            model(part, rows)

    forward, _ = _best(passes, times=2)
    yield "images/s", len(captions) / pictures
    yield "texts/s", len(captions) / texts
    yield "pairs/s, encoding", len(captions) / (pictures + texts)
    yield "pairs/s, forward of a step", len(captions) / forward


def _padded(model: GoalClip, captions: list[str], batch: int) -> Tensor:
    context = model.spec.context_length
    ids = torch.zeros(len(captions), context, dtype=torch.long)
    for row, caption in enumerate(captions):
        tokens = text.tokenize(caption, [], context).ids
        ids[row, : len(tokens)] = tokens
    return torch.cat([model.encode_texts(part) for part in ids.split(batch)])


def _related(count: int) -> tuple[Tensor, Tensor]:
    """Unit vectors of which the pairs (i, i) and (i, i + count / 2) are near each other."""
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(count // 2, WIDTH, generator=draw).repeat(2, 1)
    noise = (torch.randn(count, WIDTH, generator=draw) for _ in range(2))
    image, texts = (normalize(whole + 4 * one, dim=1) for one in noise)
    return image, texts


def _network(arguments: argparse.Namespace) -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(replace(spec_of(arguments.network), context_length=248)).eval()


def _captions(file: Path | None, count: int) -> list[str]:
    """Captions from all over a file, or sentences of like length."""
    if file:
        found = step_cases.texts(file)
        return found[:: max(1, len(found) // count)][:count]
    sentence = "A brown dog lies on the grass beside a red ball. "
    return [sentence * (5 + number % 17) for number in range(count)]


def _timed(work: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _best(work: Callable, times: int = 3) -> tuple[float, object]:
    """The shortest of several runs, after one that warms up; and the result."""
    work()
    runs = [_timed(work) for _ in range(times)]
    return min(runs, key=lambda run: run[0])


PARTS = {"joint": joint, "recall": recall, "text": encode, "step": step}

if __name__ == "__main__":
    main()
