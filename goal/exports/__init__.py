"""A model for other programs: a folder of files that they load as they are, with a model card."""

import logging
from pathlib import Path

from goal import weights
from goal.errors import UserError
from goal.exports import card, folders

log = logging.getLogger(__name__)

READERS = ("open_clip", "transformers", "onnx")


def run(path: Path, folder: Path, reader: str) -> None:
    """Write the model at `path` into `folder` for one of READERS; the card is its README.md.

    Raises UserError for weights that cannot be read, a folder that holds files already (of an earlier export
    too: one of another reader's would be left among the new ones), and where the disk refuses.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    model = weights.load(path)
    if reader == "onnx":
        from goal.exports import onnx_files

        onnx_files.write(model, folder)
    elif reader == "transformers":
        folders.transformers(model, folder)
    else:
        folders.open_clip(model, folder)
    card.write(path, model.spec, reader, folder)
    log.info("%s: for %s; README.md says what is in it", folder, reader)
