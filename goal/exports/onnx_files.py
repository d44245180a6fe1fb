"""Both towers as ONNX programs, checked against the network before they count as written.

images.onnx: views (B, 3, S, S), as preprocessor_config.json says, to L2-normalised embeddings (B, D).
texts.onnx: ids (B, context) of CLIP's tokenizer, zero padded, to the same.
Letters: B pictures or texts, S side of the view in pixels, D joint width.
"""

import contextlib
import io
import logging
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from goal.errors import UserError
from goal.exports import folders
from goal.exports.card import TOLERANCE
from goal.model.network import GoalClip
from goal.runtime import files

log = logging.getLogger(__name__)

IMAGES, TEXTS = "images.onnx", "texts.onnx"
# Protocol buffers hold no larger file.
MOST_BYTES = 2**31 - 1
# They tell of every node.
NOISY = ("onnx_ir", "onnxscript")


class _Images(nn.Module):
    def __init__(self, model: GoalClip) -> None:
        super().__init__()
        self.model = model

    def forward(self, views: Tensor) -> Tensor:
        return self.model.encode_images(views, normalize=True)


class _Texts(nn.Module):
    def __init__(self, model: GoalClip) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.encode_texts(ids, normalize=True)


def write(model: GoalClip, folder: Path) -> None:
    """Write images.onnx, texts.onnx and preprocessor_config.json; any batch size.

    Raises UserError where the disk refuses, for a tower of 2 GiB or more, and where onnxruntime's answer
    differs from the network's by more than TOLERANCE: nothing wrong is left behind.
    """
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    folders.preprocessor(model.spec, folder)
    draw = torch.Generator().manual_seed(0)
    side, context = model.spec.image_size, model.spec.context_length
    views = torch.randn(3, 3, side, side, generator=draw)
    # Texts of three lengths: BOS, tokens, EOS, zeros.
    ids = torch.zeros(3, context, dtype=torch.long)
    for row, length in zip(ids, (2, (context + 2) // 2, context), strict=True):
        row[: length - 1] = torch.randint(1, model.spec.vocab_size - 2, (length - 1,), generator=draw)
        row[0], row[length - 1] = model.spec.vocab_size - 2, model.spec.vocab_size - 1
    _tower(_Images(model).eval(), "views", views, folder / IMAGES)
    _tower(_Texts(model).eval(), "ids", ids, folder / TEXTS)


@torch.inference_mode()
def _tower(tower: nn.Module, name: str, inputs: Tensor, path: Path) -> None:
    parts = tower.model.visual if name == "views" else tower.model
    size = sum(value.nbytes for value in parts.parameters())
    if size > MOST_BYTES:
        raise UserError(f"{path}: {size / 2**30:.1f} GiB; an ONNX file holds less than 2")
    with files.atomic(path) as draft:
        # The exporter talks on stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                tower,
                (inputs[:2],),
                str(draft),
                input_names=[name],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {name: inputs.numpy()})
        difference = (torch.from_numpy(found) - tower(inputs)).abs().max().item()
        # Not a number differs too.
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path}: not written: its embeddings differ from the network's by {difference:.1e}"
            )
    log.info("%s: differs from the network by %.1e at most", path, difference)
