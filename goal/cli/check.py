"""What a parameter file asks for, told before anything is downloaded, and whether it can work here."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from goal import clip, positions
from goal.config import Params, Stage, paths
from goal.datasets import captions_file, manifest
from goal.errors import UserError
from goal.model import architectures
from goal.model.network import GoalClip, Spec
from goal.training import batches, recipe
from goal.training.recipe import Recipe

# Pictures to train on, GB to download and to unpack (the sets' own pages; DCI as GOAL splits it).
SETS = {"docci": (9647, 7.6, 15.2), "dci": (5445, 8.1, 16.2)}
# Tokens of a caption and of a sentence, means of DOCCI's 5,100 captions under CLIP's tokeniser.
CAPTION_TOKENS, SENTENCE_TOKENS = 144, 22
# Terms that need crops and sentences in the towers.
LOCAL_TERMS = ("local", "tsl_image", "tsl_text")
# fp32 weights, gradients and AdamW's two moments.
BYTES_A_PARAMETER = 16
# What a block keeps of one token for the backward pass, in units of its width: layer norms, q, k, v,
# attention's output, the MLP's hidden units twice and two residual sums.
KEPT_WIDTHS = 18


@dataclass(frozen=True)
class Fact:
    """One line of the answer; `fault` where it cannot work as it stands."""

    topic: str
    text: str
    fault: bool = False


def facts(params: Params) -> list[Fact]:
    """All that can be said offline. Nothing is downloaded, trained or written."""
    try:
        spec = architectures.spec_of(params.model.name)
    except UserError as error:
        return [Fact("model", str(error), fault=True)]
    pictures = _pictures(params)
    return [
        *_model(params, spec),
        *_data(params, pictures),
        *_mining(params),
        *_training(params, spec, pictures),
        *_disk(params, spec, pictures),
    ]


def parameters(spec: Spec) -> int:
    """Trained numbers of the network, its positions stretched; no memory is taken for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in GoalClip(spec).parameters())


def _model(params: Params, spec: Spec) -> Iterator[Fact]:
    model = params.model
    yield Fact(
        "model",
        f"{model.name}, {parameters(spec) / 1e6:.1f} M parameters, {spec.image_size} px, {model.view}",
    )
    longest = positions.longest(architectures.spec_of(model.name).context_length, model.keep_positions)
    if model.context_length > longest:
        yield Fact("model", f"model.context_length {model.context_length} is over {longest}", fault=True)
    if model.pretrained == clip.EMBEDDED:
        yield Fact("weights", "embedded, nothing to download")
    elif (model.name, model.pretrained) in architectures.supported():
        yield Fact(
            "weights", f"open_clip downloads {model.name}/{model.pretrained}, unless it is in its cache"
        )
    elif Path(model.pretrained).exists():
        yield Fact("weights", f"{model.pretrained}, a file here")
    else:
        tags = sorted(tag for name, tag in architectures.supported() if name == model.name)
        known = f"neither a file nor a tag of {model.name} ({', '.join(tags) or 'it has none'})"
        yield Fact("weights", f"model.pretrained {model.pretrained!r} is {known}", fault=True)


def _pictures(params: Params) -> int | None:
    """Pictures to train on, if that is known yet."""
    made = paths.manifest(params.data.name, "train")
    if made.exists():
        return len(manifest.read(made))
    if params.data.source == "scenes":
        return params.data.scenes.train
    return SETS[params.data.source][0] if params.data.source in SETS else None


def _data(params: Params, pictures: int | None) -> Iterator[Fact]:
    data = params.data
    if data.source == "folder":
        try:
            yield Fact("data", f"captions: {captions_file.find(Path(data.path))}")
        except UserError as error:
            yield Fact("data", str(error), fault=True)
    elif data.source == "goal_lists" and not Path(data.path).exists():
        yield Fact("data", f"data.path {data.path} does not exist", fault=True)
    if data.source in SETS and not data.download.root:
        terms = (
            ""
            if data.download.accept_terms == data.source
            else f"; its licence is not accepted yet: data.download.accept_terms: {data.source}"
        )
        yield Fact("data", f"{data.source}: about {SETS[data.source][1]:.1f} GB to download{terms}")
    elif data.download.root and not Path(data.download.root).exists():
        yield Fact("data", f"data.download.root {data.download.root} does not exist", fault=True)
    known = "known after `goal data`" if pictures is None else f"{pictures:,}"
    yield Fact("data", f"{data.source}: pictures to train on: {known}")


def _mining(params: Params) -> Iterator[Fact]:
    yield Fact("regions", f"{', '.join(params.regions.sources)} on {', '.join(params.regions.splits)}")
    sam = params.regions.sam
    if "sam" in params.regions.sources and not sam.checkpoint:
        yield Fact("regions", f"SAM {sam.model}: its checkpoint is downloaded once")
    elif "sam" in params.regions.sources and not Path(sam.checkpoint).exists():
        yield Fact("regions", f"regions.sam.checkpoint {sam.checkpoint} does not exist", fault=True)
    yield Fact("pairs", f"matched by {params.pairs.matcher}")


def _training(params: Params, spec: Spec, pictures: int | None) -> Iterator[Fact]:
    for name in paths.TRAINED:
        stage: Stage = params.stage1 if name == "stage1" else params.stage2
        try:
            plan = recipe.plan(params, name)
        except UserError as error:
            yield Fact(name, str(error), fault=True)
            continue
        if stage.epochs == 0:
            yield Fact(name, "0 epochs: passes its weights on")
            continue
        if pictures is None:
            yield Fact(name, f"{stage.epochs} epochs of batches of {stage.batch_size}")
            continue
        try:
            batches.check(plan.section, stage.batch_size, pictures, params.train.processes, params.data.name)
        except UserError as error:
            yield Fact(name, str(error), fault=True)
            continue
        steps = stage.epochs * batches.steps_per_epoch(pictures, stage.batch_size)
        patches = (spec.image_size // spec.patch_size) ** 2 + 1
        local = any(plan.weights.get(term) for term in LOCAL_TERMS)
        views, texts = (2, CAPTION_TOKENS + SENTENCE_TOKENS) if local else (1, CAPTION_TOKENS)
        tokens = steps * stage.batch_size * (views * patches + texts)
        yield Fact(
            name,
            f"{steps:,} steps, {steps * stage.batch_size:,} samples, about {tokens / 1e6:,.0f} M tokens, "
            f"about {_memory(params, spec, plan, views * patches, texts) / 2**30:.1f} GiB on the device",
        )


def _memory(params: Params, spec: Spec, plan: Recipe, image_tokens: int, text_tokens: int) -> float:
    """Bytes: an estimate."""
    size = 2 if plan.bf16 else 4
    pairs = params.train.chunk_size or -(-plan.stage.batch_size // params.train.processes)
    kept = (
        image_tokens * spec.vision_width * spec.vision_layers
        + text_tokens * spec.text_width * spec.text_layers
    )
    if params.train.checkpoint_activations:
        kept /= KEPT_WIDTHS / 2
    return parameters(spec) * BYTES_A_PARAMETER + pairs * kept * KEPT_WIDTHS * size


def _disk(params: Params, spec: Spec, pictures: int | None) -> Iterator[Fact]:
    weights = 4 * parameters(spec) / 1e9
    # Five models, each also in DVC's cache, and the checkpoints of one training: weights and two moments.
    need = weights * (5 * 2 + 3 * params.train.keep_checkpoints)
    data = SETS[params.data.source][2] if params.data.source in SETS else (pictures or 0) * 2e-5
    free = shutil.disk_usage(".").free / 1e9
    words = (
        f"about {need + data:.1f} GB (models and checkpoints {need:.1f}, data {data:.1f}); free {free:.0f} GB"
    )
    yield Fact("disk", words, fault=need + data > free)
    if not os.access(".", os.W_OK):
        yield Fact("disk", f"{Path.cwd()} cannot be written", fault=True)
