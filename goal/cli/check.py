"""What a parameter file asks for and whether it can work here, before anything is downloaded."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from goal import clip, positions
from goal.config import Params, drawn, paths, presets
from goal.datasets import folder, released, slices
from goal.errors import UserError
from goal.model import architectures, sources
from goal.model.network import GoalClip, Spec
from goal.regions import WEIGHTS, known
from goal.runtime import devices
from goal.text import punkt
from goal.training import batches, mixture
from goal.training.plan import Plan

# Training pictures, GB to download, GB unpacked (from the sets' own pages; DCI in GOAL's split).
SETS = {"docci": (9647, 7.6, 15.2), "dci": (5445, 8.1, 16.2)}
# Rows of a captions file that are read, and whose pictures are opened.
FIRST_ROWS = 20
# Mean tokens of a caption and of a sentence in DOCCI's 5,100 captions, by CLIP's tokenizer.
CAPTION_TOKENS, SENTENCE_TOKENS = 144, 22
# Terms of the loss for which the towers also encode crops and sentences.
LOCAL_TERMS = ("local", "tsl_image", "tsl_text")
# fp32 weights, gradients and AdamW's two moments.
BYTES_PER_PARAMETER = 16
# Activations that a block keeps per token for the backward pass, in units of its width: layer norms, q, k,
# v, attention's output, the MLP's hidden units twice and two residual sums.
KEPT_WIDTHS = 18


@dataclass(frozen=True)
class Fact:
    """One line of the report; `fault` if this cannot work."""

    topic: str
    text: str
    fault: bool = False


def facts(params: Params) -> list[Fact]:
    """Everything that can be checked offline; downloads, trains and writes nothing."""
    try:
        spec = architectures.spec_of(params.model.name)
    except UserError as error:
        return [Fact("model", str(error), fault=True)]
    pictures = _pictures(params)
    return [
        *_model(params, spec),
        *_paths(params),
        *_data(params, pictures),
        *_mining(params),
        *_training(params, spec, pictures),
        *_disk(params, spec, pictures),
    ]


def parameters(spec: Spec) -> int:
    """The number of parameters of the network with stretched positions; allocates no memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in GoalClip(spec).parameters())


def _model(params: Params, spec: Spec) -> Iterator[Fact]:
    model = params.model
    yield Fact(
        "model",
        f"{model.name}, {parameters(spec) / 1e6:.1f} M parameters, {spec.image_size} px, view {model.view}",
    )
    if drawn.unfit(model.name, params.data.source):
        yield Fact("model", drawn.ADVICE)
    longest = positions.longest(architectures.spec_of(model.name).context_length, model.keep_positions)
    if model.context_length > longest:
        yield Fact("model", f"model.context_length {model.context_length} is over {longest}", fault=True)
    if model.pretrained == clip.EMBEDDED and spec.name != architectures.SCENES:
        only = f"only {architectures.SCENES} comes with the package; set model.name to it"
        yield Fact("weights", f"model.pretrained {clip.EMBEDDED}: {only}", fault=True)
    elif model.pretrained == clip.EMBEDDED:
        yield Fact("weights", "embedded, nothing to download")
    elif (model.name, model.pretrained) in architectures.supported():
        yield Fact("weights", f"open_clip downloads {model.name}/{model.pretrained} unless its cache has it")
    elif Path(model.pretrained).exists():
        yield Fact("weights", f"the file {model.pretrained}")
    elif sources.repository(model.pretrained):
        yield Fact(
            "weights", f"Hugging Face's hub has {model.pretrained}, unless its cache or this folder does"
        )
    else:
        tags = sorted(tag for name, tag in architectures.supported() if name == model.name)
        known = f"neither a file nor a tag of {model.name} ({', '.join(tags) or 'it has none'})"
        yield Fact("weights", f"model.pretrained {model.pretrained!r} is {known}", fault=True)


def _paths(params: Params) -> Iterator[Fact]:
    for field, path in presets.relative(params.model_dump(by_alias=True), Path.cwd()).items():
        yield Fact("paths", f"{field} is relative, which `dvc exp run --temp` cannot use; write {path}")


def _pictures(params: Params) -> int | None:
    """The number of training pictures; None if it is not known yet."""
    data = params.data
    made = paths.data_dir(data.name) / "summary.json"
    summary = released.read_json(made) if made.exists() else {}
    # A folder of this name may hold another data set, made before.
    if (summary.get("source"), summary.get("path")) == (data.source, data.path):
        return slices.count(paths.manifest(data.name, "train"))
    if params.data.source == "scenes":
        return params.data.scenes.train
    return SETS[params.data.source][0] if params.data.source in SETS else None


def _data(params: Params, pictures: int | None) -> Iterator[Fact]:
    data = params.data
    if data.source == "folder":
        try:
            yield Fact("data", folder.look(params, FIRST_ROWS, params.pairs.sentences))
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
    yield Fact("data", f"{data.source}: training pictures: {known}")


def _mining(params: Params) -> Iterator[Fact]:
    yield Fact("regions", f"{', '.join(params.regions.sources)} on {', '.join(params.regions.splits)}")
    for name in sorted(WEIGHTS.keys() & set(params.regions.sources)):
        yield from _network(params, name)
    pairs = params.pairs
    yield Fact("pairs", f"matched by {pairs.matcher}")
    name, _, tag = pairs.matcher.partition("/")
    known = pairs.matcher == "base" or (name, tag) in architectures.supported()
    hub = sources.repository(pairs.matcher) and not architectures.known(name)
    if not known and not hub and not Path(pairs.matcher).exists():
        text = f"pairs.matcher {pairs.matcher}: neither base, nor a file, nor a network with its weights"
        yield Fact("pairs", f"{text}, as in ViT-B-16/openai", fault=True)
    yield from _refused("pairs", lambda: devices.resolve(pairs.device, "pairs.device"))
    if pairs.sentences != punkt.EMBEDDED:
        yield from _refused("pairs", lambda: punkt.load(pairs.sentences))


def _network(params: Params, name: str) -> Iterator[Fact]:
    """A source of regions that is a network: sam or detector."""
    section = getattr(params.regions, name)
    if not section.checkpoint:
        yield Fact("regions", f"{name} {section.model}: its checkpoint is downloaded once")
    elif not Path(section.checkpoint).exists():
        text = f"regions.{name}.checkpoint {section.checkpoint} does not exist"
        yield Fact("regions", text, fault=True)
    yield from _refused("regions", lambda: devices.resolve(params.regions.device, "regions.device"))
    yield from _refused("regions", lambda: known(name, section.model))


def _refused(topic: str, stage: Callable[[], object]) -> Iterator[Fact]:
    """The fault, if any, for which a stage would refuse to start."""
    try:
        stage()
    except UserError as error:
        yield Fact(topic, str(error), fault=True)


def _training(params: Params, spec: Spec, pictures: int | None) -> Iterator[Fact]:
    for name in paths.TRAINED:
        try:
            yield Fact(name, _cost(params, spec, pictures, name))
        except UserError as error:
            yield Fact(name, str(error), fault=True)
    file = paths.manifest(params.data.name, "val")
    if file.exists() and not slices.count(file):
        yield from _refused(paths.MIXED, lambda: mixture.check_alphas(params.mix.alphas, file))


def _cost(params: Params, spec: Spec, pictures: int | None, name: str) -> str:
    """What a training needs, as text; raises UserError if it cannot start."""
    plan = Plan.of(params, name)
    stage = plan.stage
    file = paths.manifest(params.data.name, "val")
    if file.exists():
        plan.check_validation(slices.count(file), file)
    if stage.epochs == 0:
        return "0 epochs: passes its weights on"
    if pictures is None:
        return f"{stage.epochs} epochs of batches of {stage.batch_size}"
    batches.check(plan.section, stage.batch_size, pictures, params.train.processes, params.data.name)
    steps = stage.epochs * batches.steps_per_epoch(pictures, stage.batch_size)
    plan.check_steps(steps)
    samples = steps * stage.batch_size
    patches = (spec.image_size // spec.patch_size) ** 2 + 1
    local = any(plan.loss_weights.get(term) for term in LOCAL_TERMS)
    views, texts = (2, CAPTION_TOKENS + SENTENCE_TOKENS) if local else (1, CAPTION_TOKENS)
    memory = _memory(params, spec, plan, views * patches, texts) / 2**30
    return (
        f"{steps:,} steps, {samples:,} samples, about "
        f"{_rounded(samples * (views * patches + texts))} tokens, about {memory:.1f} GiB on the device"
    )


def _rounded(number: int) -> str:
    return f"{number / 1e6:,.0f} M" if number >= 1e7 else f"{number / 1e3:,.0f} thousand"


def _memory(params: Params, spec: Spec, plan: Plan, image_tokens: int, text_tokens: int) -> float:
    """An estimate, in bytes, of what one process needs on its device."""
    size = 2 if plan.bf16 else 4
    pairs = params.train.chunk_size or -(-plan.stage.batch_size // params.train.processes)
    kept = (
        image_tokens * spec.vision_width * spec.vision_layers
        + text_tokens * spec.text_width * spec.text_layers
    )
    if params.train.checkpoint_activations:
        kept /= KEPT_WIDTHS / 2
    return parameters(spec) * BYTES_PER_PARAMETER + pairs * kept * KEPT_WIDTHS * size


def _disk(params: Params, spec: Spec, pictures: int | None) -> Iterator[Fact]:
    weights = 4 * parameters(spec) / 1e9
    # Five models, each also in DVC's cache, and one training's checkpoints: weights and two moments each.
    need = weights * (5 * 2 + 3 * params.train.keep_checkpoints)
    data = SETS[params.data.source][2] if params.data.source in SETS else (pictures or 0) * 2e-5
    free = shutil.disk_usage(".").free / 1e9
    words = (
        f"about {need + data:.1f} GB (models and checkpoints {need:.1f}, data {data:.1f}); free {free:.0f} GB"
    )
    yield Fact("disk", words, fault=need + data > free)
    if not os.access(".", os.W_OK):
        yield Fact("disk", f"{Path.cwd()} cannot be written", fault=True)
