"""Embed a user's own pictures and texts with one model, into one Parquet file."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch.nn.functional as F
from jaxtyping import Float
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

# Rows of one Arrow array.
BLOCK = 100_000


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
    tables = []
    if pictures:
        (found,) = encode_pictures([network], pictures, settings)
        tables += _tables([picture.path for picture in pictures], "image", found)
    if texts:
        found, _ = embedding.of_texts(network, texts, settings.batch_size)
        tables += _tables(texts, "text", found)
    write_table(pa.concat_tables(tables), output)
    log.info("%s: %d pictures, %d texts", output, len(pictures), len(texts))


def _files(given: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        files += sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return files


def _tables(inputs: Sequence[str], kind: str, found: Float[Tensor, "N D"]) -> Iterator[pa.Table]:
    """The rows as Arrow arrays: as Python's floats each number would take 32 bytes instead of 4."""
    for start in range(0, len(inputs), BLOCK):
        names = inputs[start : start + BLOCK]
        vectors = F.normalize(found[start : start + BLOCK], dim=-1)
        ends = pa.array(range(0, vectors.numel() + 1, vectors.shape[1]), pa.int32())
        embeddings = pa.ListArray.from_arrays(ends, pa.array(vectors.flatten().numpy()))
        yield pa.table([pa.array(names), pa.array([kind] * len(names)), embeddings], schema=SCHEMA)
