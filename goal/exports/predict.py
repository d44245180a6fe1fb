"""Embed a user's own pictures and texts with one model, into one Parquet file."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from goal import weights
from goal.config import Params
from goal.datasets import images
from goal.datasets.manifest import write_table
from goal.errors import UserError
from goal.evaluation.embed import Settings, encode_pictures
from goal.evaluation.galleries import Picture
from goal.model import embedding
from goal.runtime import devices

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [("input", pa.string()), ("kind", pa.string()), ("embedding", pa.list_(pa.float32()))],
)


def run(params: Params, model: Path, given: Sequence[Path], texts: Sequence[str], output: Path) -> None:
    """Write one row per picture and text: input, kind (image | text), embedding (D,), L2-normalised.

    A folder stands for the pictures in it. Pictures that cannot be read are logged and left out.
    Raises UserError if nothing is left to embed.
    """
    pictures = []
    for path in _files(given):
        try:
            images.probe(path, params.data.max_megapixels)
        except images.ImageError as error:
            log.warning("%s", error)
        else:
            pictures.append(Picture(str(path)))
    if not pictures and not texts:
        raise UserError("nothing to embed: give --image FILE or FOLDER, or --text TEXT")
    network = weights.load(model)
    device = devices.resolve(params.train.device, "train.device").type
    settings = Settings(device, params.evaluate.batch_size, params.data.max_megapixels)
    network.to(device).eval()
    rows = []
    if pictures:
        (found,) = encode_pictures([network], pictures, settings)
        rows += _rows([picture.path for picture in pictures], "image", found)
    if texts:
        found, _ = embedding.of_texts(network, texts, settings.batch_size)
        rows += _rows(texts, "text", found)
    write_table(pa.Table.from_pylist(rows, SCHEMA), output)
    log.info("%s: %d pictures, %d texts", output, len(pictures), len(texts))


def _files(given: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        files += sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return files


def _rows(inputs: Sequence[str], kind: str, found: Tensor) -> list[dict]:
    vectors = F.normalize(found, dim=-1).tolist()
    return [
        {"input": one, "kind": kind, "embedding": vector} for one, vector in zip(inputs, vectors, strict=True)
    ]
