"""A model for other programs: a folder of files that they load as they are, with a model card."""

from pathlib import Path

from goal import weights
from goal.exports import card, folders

READERS = ("open_clip", "transformers", "onnx")


def run(path: Path, folder: Path, reader: str) -> None:
    """Write the model at `path` into `folder` for one of READERS; the card is its README.md.

    Raises UserError for weights that cannot be read and where the disk refuses.
    """
    model = weights.load(path)
    if reader == "onnx":
        from goal.exports import onnx_files

        onnx_files.write(model, folder)
    elif reader == "transformers":
        folders.transformers(model, folder)
    else:
        folders.open_clip(model, folder)
    card.write(path, model.spec, reader, folder)
