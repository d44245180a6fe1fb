"""Both towers as ONNX files, each compared with the network before it is kept.

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
# The limit of the protocol buffer format.
MAX_BYTES = 2**31 - 1
# Libraries that log every node.
NOISY = ("onnx_ir", "onnxscript")


class _Tower(nn.Module):
    """The image tower (`views`) or the text tower (`ids`)."""

    def __init__(self, model: GoalClip, input_name: str) -> None:
        super().__init__()
        self.model, self.input_name = model, input_name

    def forward(self, inputs: Tensor) -> Tensor:
        encode = self.model.encode_images if self.input_name == "views" else self.model.encode_texts
        return encode(inputs, normalize=True)


def write(model: GoalClip, folder: Path) -> None:
    """Write images.onnx, texts.onnx and preprocessor_config.json, for any batch size.

    Raises UserError if the disk refuses, for a tower of 2 GiB or more, and if onnxruntime's embeddings differ
    from the network's by more than TOLERANCE; such a file is not kept.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    folders.preprocessor(model.spec, folder)
    draw = torch.Generator().manual_seed(0)
    side, context = model.spec.image_size, model.spec.context_length
    views = torch.randn(3, 3, side, side, generator=draw)
    # Texts of three lengths: BOS, tokens, EOS, zeros.
    ids = torch.zeros(3, context, dtype=torch.long)
    for row, length in zip(ids, (2, (context + 2) // 2, context), strict=True):
        row[: length - 1] = torch.randint(1, model.spec.vocab_size - 2, (length - 1,), generator=draw)
        row[0], row[length - 1] = model.spec.vocab_size - 2, model.spec.vocab_size - 1
    _export(_Tower(model, "views").eval(), views, folder / IMAGES)
    _export(_Tower(model, "ids").eval(), ids, folder / TEXTS)


@torch.inference_mode()
def _export(tower: _Tower, inputs: Tensor, path: Path) -> None:
    own = tower.model.visual if tower.input_name == "views" else tower.model
    size = sum(value.nbytes for value in own.parameters())
    if size > MAX_BYTES:
        raise UserError(
            f"{path}: the tower has {size / 2**30:.1f} GiB, and an ONNX file holds less than 2; "
            "use `--for open_clip` or `--for transformers`"
        )
    with files.atomic(path) as draft:
        # The exporter prints to stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                tower,
                (inputs[:2],),
                str(draft),
                input_names=[tower.input_name],
                output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {tower.input_name: inputs.numpy()})
        difference = (torch.from_numpy(found) - tower(inputs)).abs().max().item()
        # `not <=` so that NaN fails too.
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path}: not written: its embeddings differ from the network's by {difference:.1e}"
            )
    log.info("%s: differs from the network by at most %.1e", path, difference)
