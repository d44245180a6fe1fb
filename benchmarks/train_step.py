"""A training step against the plain one in the release's manner: time and peak memory, the same losses first.

    python -m benchmarks.train_step --captions captions.json         # ViT-B-16, batch 8, fp32, on a CPU
    python -m benchmarks.train_step --captions captions.json --device cuda --batch 64

`captions.json` is a list of records with a `caption` each, or of texts. Pictures, boxes and weights are
random.

| way | what it does |
|---|---|
| ours | goal.training.step: each tower once, packed texts, pooling by matrix products, fused AdamW |
| plain | open_clip's modules: both towers run twice, texts padded to the context, pooled by sample |
| plain, anomaly | the same under torch.autograd.set_detect_anomaly, as released |

Each way runs in a process of its own, so that its peak memory is its own. All take the same pairs.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from goal import boxes
from goal.model.architectures import spec_of
from goal.model.network import GoalClip, Spec
from goal.text import pad, split_sentences, tokenize
from goal.training import step
from goal.training.batches import Collate
from goal.training.distributed import Group
from goal.training.examples import Sample
from goal.training.learner import optimizer

WEIGHTS = {"global": 1.0, "local": 0.5, "tsl_image": 1.0, "tsl_text": 1.0}
CONTEXT = 248
WAYS = ("ours", "plain", "plain, anomaly")
# Times that the release tokenises each caption in a step.
TOKENISED = 5


def options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of the step has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", required=True, type=Path)
    parser.add_argument("--network", default="ViT-B-16")
    parser.add_argument("--device", default="cpu")
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="timed ones; the fastest counts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step.json"))
    parser.add_argument("--chunk", type=int, default=0, help="ours: pairs a forward pass; 0: all at once")
    parser.add_argument("--checkpoint", action="store_true", help="ours: compute activations again")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    found = {way: _in_a_process(way) for way in WAYS}
    ours, plain, released = (found[way] for way in WAYS)
    for way in (plain, released):
        theirs = torch.tensor(way["losses"])
        torch.testing.assert_close(theirs, torch.tensor(ours["losses"]), rtol=1e-3, atol=1e-4)
    ratios = {
        "plain over ours, time": plain["seconds"] / ours["seconds"],
        "released over ours, time": released["seconds"] / ours["seconds"],
        "ours over plain, memory": ours["gib"] / plain["gib"],
    }
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("way", "out")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"settings": settings, "torch": torch.__version__, "ways": found, "ratios": ratios}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for way, values in found.items():
        print(f"{way}: {values['seconds']:.2f} s a step, {values['gib']:.2f} GiB at most")
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")


def _in_a_process(way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--way", way]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the fastest step, losses of the first, peak memory of this process (or of its GPU)."""
    device = torch.device(arguments.device)
    spec = spec_of(arguments.network)
    spec = Spec(**{**vars(spec), "context_length": CONTEXT})
    torch.manual_seed(0)
    model = GoalClip(spec)
    pairs = random_pairs(arguments.captions, arguments.batch, spec)
    bf16 = arguments.precision == "bf16"

    def autocast():
        return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    if arguments.way == "ours":
        model.set_grad_checkpointing(arguments.checkpoint)
        take = _ours(model.to(device), samples(pairs, spec), arguments.chunk, device, autocast)
    else:
        torch.autograd.set_detect_anomaly(arguments.way == "plain, anomaly")
        take = _plain(model, pairs, spec, device, autocast)
    times, losses = [], []
    for _ in range(arguments.steps + 1):
        began = time.perf_counter()
        losses.append(take())
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident()
    return {"seconds": min(times[1:]), "losses": losses[0], "gib": peak / 2**30}


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_pairs(file: Path, count: int, spec: Spec) -> list[dict[str, Any]]:
    """Captions of a file, the second sentence of each, and random pictures, crops and boxes."""
    records = json.loads(file.read_text())
    captions = [record if isinstance(record, str) else record["caption"] for record in records]
    long = [caption for caption in captions if len(split_sentences(caption)) > 2][:count]
    generator = torch.Generator().manual_seed(1)
    shape = (3, spec.image_size, spec.image_size)
    pairs = []
    for caption in long:
        corner = torch.randint(0, spec.image_size // 2, (2,), generator=generator).tolist()
        pairs.append(
            {
                "caption": caption,
                "sentence": split_sentences(caption)[1],
                "whole": torch.randn(shape, generator=generator),
                "crop": torch.randn(shape, generator=generator),
                "box": (*corner, corner[0] + spec.image_size // 3, corner[1] + spec.image_size // 3),
            }
        )
    return pairs


def samples(pairs: list[dict[str, Any]], spec: Spec) -> list[Sample]:
    """The pairs as training takes them, tokenised once."""
    found = []
    for pair in pairs:
        tokens = tokenize(pair["caption"], [pair["sentence"]], CONTEXT)
        patches = boxes.patch_mask(pair["box"], spec.image_size, spec.patch_size)
        sentence = tokenize(pair["sentence"].text, [], CONTEXT).ids
        found.append(
            Sample(pair["whole"], tokens.ids, pair["crop"], sentence, patches, tokens.spans[0], None)
        )
    return found


def _ours(
    model: GoalClip, data: list[Sample], chunk: int, device: torch.device, autocast: Callable
) -> Callable[[], list[float]]:
    collate, adamw, group = Collate(model.spec, chunk), optimizer(model, 5e-6, 0.05), Group(0, 1, device)

    def take() -> list[float]:
        chunks = collate(data).to(device).chunks()
        values = step.backward(model, chunks, WEIGHTS, group, autocast)
        adamw.step()
        adamw.zero_grad()
        return torch.stack(list(values.values())).tolist()

    return take


class _Plain(nn.Module):
    """open_clip's network, its last layers before the final layer norms taken out."""

    def __init__(self, source: GoalClip) -> None:
        super().__init__()
        self.clip = CLIP(**source.spec.config)
        self.clip.load_state_dict(source.state_dict())
        self.clip.visual.output_tokens = True
        self.clip.visual.final_ln_after_pool = True

    def images(self, views: Tensor) -> tuple[Tensor, Tensor]:
        return self.clip.visual(views)

    def texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        clip = self.clip
        embedded = clip.token_embedding(ids) + clip.positional_embedding
        hidden = clip.transformer(embedded, attn_mask=clip.attn_mask)
        ends = hidden[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return clip.ln_final(ends) @ clip.text_projection, hidden


def _plain(
    source: GoalClip, pairs: list[dict[str, Any]], spec: Spec, device: torch.device, autocast: Callable
) -> Callable[[], list[float]]:
    model = _Plain(source).to(device)
    clip = model.clip
    adamw = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=0.05)

    def padded(texts: list[Tensor]) -> Tensor:
        return F.pad(pad(texts), (0, CONTEXT - max(map(len, texts)))).to(device)

    def similarity(mean: Tensor, target: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(mean, target, dim=-1)) ** 2

    def take() -> list[float]:
        captions, sentences, spans = [], [], []
        for pair in pairs:
            for _ in range(TOKENISED):
                tokens = tokenize(pair["caption"], [pair["sentence"]], CONTEXT)
            captions.append(tokens.ids)
            sentences.append(tokenize(pair["sentence"].text, [], CONTEXT).ids)
            spans.append(tokens.spans[0])
        views = torch.stack([pair[part] for part in ("whole", "crop") for pair in pairs]).to(device)
        ids = padded(captions + sentences)
        with autocast():
            # As released: once for the embeddings and again for the tokens, wholes and crops each time.
            pooled, _ = model.images(views)
            written, _ = model.texts(ids)
            _, patches = model.images(views)
            _, tokens = model.texts(ids)
        image, region = pooled.float().chunk(2)
        text, sentence = written.float().chunk(2)
        seen, read = [], []
        for row, pair in enumerate(pairs):
            lit = boxes.patch_mask(pair["box"], spec.image_size, spec.patch_size).nonzero()[:, 0].tolist()
            mean = torch.stack([patches[row, place].float() for place in lit]).mean(0)
            seen.append(similarity(clip.visual.ln_post(mean) @ clip.visual.proj, region[row]))
            mean = torch.stack([tokens[row, place].float() for place in range(*spans[row])]).mean(0)
            read.append(similarity(clip.ln_final(mean) @ clip.text_projection, sentence[row]))
        target = torch.arange(len(pairs), device=device)
        values = []
        for left, right in ((image, text), (region, sentence)):
            logits = clip.logit_scale.exp() * F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T
            values.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
        values += [torch.stack(seen).mean(), torch.stack(read).mean()]
        sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True)).backward()
        adamw.step()
        adamw.zero_grad()
        return [value.item() for value in values]

    return take


if __name__ == "__main__":
    main()
