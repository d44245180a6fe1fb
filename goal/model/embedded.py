"""The small CLIP that ships with the package: half precision, and only the trained rows of the token table.

Pretraining sees less than a hundred of the 49,408 tokens. Every other row keeps its first random value, which
comes from numpy's legacy generator, whose stream is frozen for good: it is drawn again instead of shipped.
"""

import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from goal import weights
from goal.errors import UserError
from goal.model import architectures
from goal.model.network import GoalClip, Spec
from goal.runtime import tensorfiles

ASSET = Path(__file__).parents[1] / "assets" / f"{architectures.SCENES}.safetensors"
TABLE = "token_embedding.weight"
_NUMBERS, _ROWS = "token_embedding.numbers", "token_embedding.rows"
_METADATA = "goal.embedded"
_DEVIATION = 0.02  # of the fresh token table, as in open_clip


def load(path: Path = ASSET) -> GoalClip:
    """The pretrained scenes-vit, context 77; raises UserError where the file is not this asset."""
    stored, metadata = tensorfiles.read(path)
    try:
        seed = json.loads(metadata[_METADATA])["seed"]
        numbers, rows = stored.pop(_NUMBERS), stored.pop(_ROWS)
    except KeyError as error:
        raise UserError(f"{path}: not written by `goal pretrain-scenes`: no {error}") from error
    spec = architectures.spec_of(architectures.SCENES)
    table = fresh_table(spec, seed)
    table[numbers] = rows.float()
    return weights.build(spec, stored | {TABLE: table})


def save(model: GoalClip, seed: int, trained: Bool[Tensor, " vocab"], path: Path = ASSET) -> None:
    """Write the asset; `seed` made the token table, whose rows outside `trained` must be as fresh.

    Raises ValueError when another row has changed.
    """
    state = {key: value.detach() for key, value in model.state_dict().items()}
    table = state.pop(TABLE)
    if not torch.equal(table[~trained], fresh_table(model.spec, seed)[~trained]):
        raise ValueError("rows of the token table changed that no caption used")
    state |= {_NUMBERS: trained.nonzero()[:, 0], _ROWS: table[trained]}
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    tensorfiles.write(path, halved, {_METADATA: json.dumps({"seed": seed})})


def fresh_table(spec: Spec, seed: int) -> Float[Tensor, "vocab W"]:
    """The token table before training."""
    values = np.random.RandomState(seed).standard_normal((spec.vocab_size, spec.text_width))
    return torch.from_numpy((_DEVIATION * values).astype(np.float32))
