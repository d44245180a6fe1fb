"""Pretrain the small CLIP of the embedded default on short captions of scenes, as OpenAI did on the web.

`goal pretrain-scenes` made goal/assets/scenes-vit.safetensors. Its scenes are a separate split, so it has
seen no picture of train, val or test. A view is a whole scene or a close-up of one object, so that the model
can embed crops, as a CLIP trained on the web can.

A close-up has captions of several kinds: its shape, colour or pattern alone, shape and pattern, or a phrase.
With phrases alone, the colour tells most pairs of a batch apart, and shapes are not learnt.
A step takes 0.6 s on one core, the whole pretraining 25 minutes. Of 500 close-ups of scenes that it has not
seen, 98 % get the right one of 72 names (colour and shape) and 100 % the right one of 4 patterns.
Letters: B pairs, S side of the view in pixels.
"""

import logging
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from goal import text
from goal.datasets import scenes_layout, scenes_render, scenes_words
from goal.datasets.scenes_layout import Scene
from goal.model import architectures, embedded
from goal.model.network import GoalClip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults made the shipped weights."""

    seed: int = 0
    scenes: int = 8_000
    steps: int = 2_600
    wholes: int = 32  # whole scenes per batch, each with a short caption
    close_ups: int = 40  # objects per batch, each with several captions
    margin: float = 0.5  # largest margin around the object of a close-up, as a share of the object's size
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 60
    clip_norm: float = 1.0
    image_size: int = 128  # pixels, as the scenes are drawn
    objects: tuple[int, int] = (3, 6)  # fewest and most per scene


@dataclass(frozen=True)
class Views:
    """A drawn scene, its whole view and a close-up of its object number `thing`, both uint8 (S, S, 3)."""

    scene: Scene
    whole: np.ndarray
    close_up: np.ndarray
    thing: int


def run(recipe: Recipe, path: Path = embedded.ASSET) -> None:
    """Draw the scenes, train, write the weights; the same recipe and machine give the same bytes."""
    torch.manual_seed(recipe.seed)
    model = fresh(recipe.seed)
    views = draw(recipe, model.spec.image_size)
    trained = train(model, views, recipe)
    embedded.save(model, recipe.seed, trained, path)
    log.info("%s: %.1f MB, %d trained tokens", path, path.stat().st_size / 1e6, int(trained.sum()))


def fresh(seed: int) -> GoalClip:
    """The untrained network, with the token table of goal.model.embedded."""
    model = GoalClip(architectures.spec_of(architectures.SCENES))
    with torch.no_grad():
        model.token_embedding.weight.copy_(embedded.fresh_table(model.spec, seed))
    return model


def draw(recipe: Recipe, side: int) -> list[Views]:
    """All scenes of the recipe, with views of `side` pixels."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        drawn = pool.map(partial(view, recipe, side), range(recipe.scenes), chunksize=100)
        return list(tqdm(drawn, "scenes", total=recipe.scenes, unit=" pictures"))


def train(model: GoalClip, views: list[Views], recipe: Recipe) -> Tensor:
    """Train in place on views and short captions; returns the tokens used, (vocab,) bool.

    Per step, one pass over the images and one over the captions; the loss is the sum of the contrastive
    losses of the whole scenes and, for each kind of caption, of the close-ups.
    """
    rng = np.random.default_rng(recipe.seed)
    used = torch.zeros(model.spec.vocab_size, dtype=torch.bool)
    optimizer = _optimizer(model, recipe)
    bar = tqdm(range(recipe.steps), "pretrain", unit=" steps")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        pixels, kinds = _batch(views, recipe, rng)
        captions = list(dict.fromkeys(caption for kind in kinds for caption in kind))
        rows = {caption: row for row, caption in enumerate(captions)}
        ids = [text.tokenize(caption, [], model.spec.context_length).ids for caption in captions]
        used[torch.cat(ids)] = True
        images = model.encode_images(pixels, normalize=True)
        texts = model.encode_texts(text.pad(ids), normalize=True)
        wholes, close_ups = images.split([recipe.wholes, recipe.close_ups])
        loss = sum(
            same_captions_match(shown, texts[[rows[caption] for caption in kind]], kind, model.scale())
            for kind, shown in zip(kinds, [wholes] + [close_ups] * (len(kinds) - 1), strict=True)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return used


def same_captions_match(images: Tensor, texts: Tensor, captions: list[str], scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors (B, D) in which equal captions match each other's images.

    The target is shared among all matches (UniCL, arXiv 2204.03610).
    """
    number = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    own = torch.tensor([number[caption] for caption in captions])
    match = (own[:, None] == own).float()
    target = match / match.sum(1, keepdim=True)
    logits = scale * images @ texts.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine decay to 0; goal.training.schedule rounds some values differently."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def view(recipe: Recipe, side: int, index: int) -> Views:
    """Scene number `index` of the pretraining, whole and a close-up of an object; views of `side` pixels."""
    stream = scenes_layout.stream(recipe.seed, "pretrain", index, "layout")
    scene = scenes_layout.draw(stream, *recipe.objects)
    pixels, boxes = scenes_render.render(scene, recipe.image_size)
    picture = Image.fromarray(pixels)
    rng = scenes_layout.stream(recipe.seed, "pretrain", index, "crop")
    thing = int(rng.integers(len(boxes)))
    close = picture.crop(_around(boxes[thing], recipe.margin * rng.random(), recipe.image_size))
    whole, close = (
        np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in (picture, close)
    )
    return Views(scene, whole, close, thing)


def _around(box: tuple[float, float, float, float], margin: float, size: int) -> tuple[int, int, int, int]:
    """A square around the box, wider by the share `margin`, moved inside the picture; image frame, pixels."""
    x1, y1, x2, y2 = box
    side = min(math.ceil(max(x2 - x1, y2 - y1) * (1 + margin)), size)
    left, top = (min(max(round((a + b - side) / 2), 0), size - side) for a, b in ((x1, x2), (y1, y2)))
    return left, top, left + side, top + side


def _batch(views: list[Views], recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, list[list[str]]]:
    """Images (B, 3, S, S) uint8, whole scenes first; captions of the wholes, then kinds of the close-ups'."""
    chosen = [views[i] for i in rng.choice(len(views), recipe.wholes + recipe.close_ups, replace=False)]
    wholes, close_ups = chosen[: recipe.wholes], chosen[recipe.wholes :]
    things = [view.scene.things[view.thing] for view in close_ups]
    kinds = [[scenes_words.short_caption(view.scene, rng) for view in wholes]]
    for name, wordings in scenes_words.SINGLE.items():
        number = int(rng.integers(len(wordings)))
        kinds.append([scenes_words.single_caption(thing, name, number) for thing in things])
    kinds.append([scenes_words.close_caption(thing, rng) for thing in things])
    pixels = np.stack([view.whole for view in wholes] + [view.close_up for view in close_ups])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), kinds


def _optimizer(model: GoalClip, recipe: Recipe) -> torch.optim.AdamW:
    # No decay for the token table, whose unused rows it would change, nor for gains and biases.
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name != embedded.TABLE]
    others = [p for name, p in model.named_parameters() if p.ndim <= 1 or name == embedded.TABLE]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
