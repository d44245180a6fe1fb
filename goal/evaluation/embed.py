"""Embeddings of pictures and texts, computed once per (model, content) and kept on disk.

The kept file may be lost at any time; it is named by everything that decides its content: the weights, the
bytes of every picture file, the boxes, the texts, the code that encodes and the device.
Letters: P pictures, T texts, D embedding width.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from goal import boxes, clip, weights
from goal.clip import Preprocess
from goal.config import paths
from goal.datasets import images, inside, prefetch
from goal.errors import UserError
from goal.evaluation.galleries import Picture
from goal.model import embedding
from goal.model.network import GoalClip, Spec
from goal.runtime import code, tensorfiles

log = logging.getLogger(__name__)

PRECISION = "fp32"


@dataclass(frozen=True)
class Settings:
    """How to embed; only the device changes a result by more than rounding."""

    device: str  # cpu | cuda
    batch_size: int  # pictures, texts
    max_megapixels: float  # larger pictures are refused


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings (fp32, not normalised), token counts before any cut, and what stands in each row.

    `files` is the sha256 of every picture file, `spec` and `model` the network and the digest of its weights.
    """

    image: Float[Tensor, "P D"]
    text: Float[Tensor, "T D"]
    tokens: Int[Tensor, " T"]
    pictures: dict[Picture, int]
    texts: dict[str, int]
    files: dict[str, str]
    spec: Spec
    model: str

    def of_pictures(self, pictures: Iterable[Picture]) -> Float[Tensor, "P D"]:
        return self.image[[self.pictures[picture] for picture in pictures]]

    def of_texts(self, texts: Iterable[str]) -> Float[Tensor, "T D"]:
        return self.text[[self.texts[one] for one in texts]]

    def lengths(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text, BOS and EOS included, before the context cuts it."""
        return [int(self.tokens[self.texts[one]]) for one in texts]


def embed(
    models: Sequence[Path], pictures: Iterable[Picture], texts: Iterable[str], settings: Settings
) -> list[EmbeddingTable]:
    """Embed different pictures and texts with models from their files, or read what an earlier call kept.

    Models that see pictures alike share their decoding. Raises UserError for a picture that cannot be opened
    and weights that cannot be loaded.
    """
    networks, digests = zip(*((weights.load(path), weights.digest(path)) for path in models), strict=True)
    return embed_with(networks, digests, pictures, texts, settings)


def embed_with(
    networks: Sequence[GoalClip],
    digests: Sequence[str],
    pictures: Iterable[Picture],
    texts: Iterable[str],
    settings: Settings,
) -> list[EmbeddingTable]:
    """The same with networks that are loaded already, and the digests of their weights."""
    pictures, texts = sorted(set(pictures), key=str), sorted(set(texts))
    files = file_digests(pictures)
    # Copies share an embedding: in another batch its last bits would differ, and one copy outrank the other.
    copies: dict[tuple, list[Picture]] = {}
    for picture in pictures:
        copies.setdefault((files[picture.path], picture.box), []).append(picture)
    rows = {picture: row for row, same in enumerate(copies.values()) for picture in same}
    pictures = [same[0] for same in copies.values()]
    key = _key(files, pictures, texts, settings.device)
    kept = [paths.work_dir("embeddings") / digest / f"{key}.safetensors" for digest in digests]
    tensors = [_kept(path) for path in kept]
    missing = [place for place, found in enumerate(tensors) if found is None]
    fresh = _encode([networks[place] for place in missing], pictures, texts, settings)
    for place, found in zip(missing, fresh, strict=True):
        tensors[place] = found
        _keep(found, kept[place])
    places = {"pictures": rows, "texts": {one: row for row, one in enumerate(texts)}, "files": files}
    return [
        EmbeddingTable(**found, **places, spec=network.spec, model=digest)
        for found, network, digest in zip(tensors, networks, digests, strict=True)
    ]


def _encode(
    models: Sequence[GoalClip], pictures: Sequence[Picture], texts: Sequence[str], settings: Settings
) -> list[dict[str, Tensor]]:
    alike: dict[tuple[int, str], list[GoalClip]] = {}
    for model in models:
        model.to(settings.device).eval()
        alike.setdefault((model.spec.image_size, model.spec.view), []).append(model)
    images = {
        model: found
        for group in alike.values()
        for model, found in zip(group, encode_pictures(group, pictures, settings), strict=True)
    }
    tensors = []
    for model in models:
        found, counts = embedding.of_texts(model, texts, settings.batch_size, bar=True)
        tensors.append({"image": images[model], "text": found, "tokens": counts})
    return tensors


def encode_pictures(
    models: Sequence[GoalClip], pictures: Sequence[Picture], settings: Settings
) -> list[Float[Tensor, "P D"]]:
    """Embeddings of pictures by each of the models, whose views must be alike: they are decoded once."""
    read = partial(_view, clip.preprocess(models[0].spec), settings.max_megapixels)
    embedded = [[torch.empty(0, model.spec.embed_dim)] for model in models]
    shown = tqdm(pictures, "pictures", unit="")
    for views in prefetch.batches_ahead(read, shown, settings.batch_size):
        for model, found in zip(models, embedded, strict=True):
            found.append(embedding.of_views(model, views))
    return list(map(torch.cat, embedded))


def file_digests(pictures: Iterable[Picture]) -> dict[str, str]:
    """sha256 of each picture file by path; raises UserError for one that cannot be read."""
    files = sorted({picture.path for picture in pictures})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(files, pool.map(_file_digest, files), strict=True))


def _file_digest(path: str) -> str:
    try:
        with inside.opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except images.DAMAGE as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', '') or error}") from error


def content_digest(
    files: dict[str, str], pictures: Iterable[Picture], texts: Iterable[str], *more: object
) -> str:
    """sha256 over what the pictures show (their files' digests and boxes) and the texts, in this order."""
    shown = [[files[picture.path], picture.box] for picture in pictures], list(texts), more
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _view(prepare: Preprocess, max_megapixels: float, picture: Picture) -> Tensor:
    image = images.open_image(picture.path, max_megapixels)
    if picture.box is None:
        return prepare.view(image)
    try:
        return prepare.view(image.crop(boxes.pixels(picture.box, image.size)))
    except ValueError as error:
        raise UserError(f"{picture.path}: {error}; fix the table that names the crop") from error


def _key(files: dict[str, str], pictures: list[Picture], texts: list[str], device: str) -> str:
    return content_digest(files, pictures, texts, code.digest("evaluation/embed"), device)


def _kept(path: Path) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        return tensorfiles.read(path)[0]
    except UserError as error:
        log.warning("%s; embedding again", error)
        return None


def _keep(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        tensorfiles.write(path, tensors, {})
    except UserError as error:
        log.warning("%s; the next evaluation embeds again", error)
