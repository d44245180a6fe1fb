"""Export a model for another library: a folder that it loads unchanged, with a model card."""

import logging
from pathlib import Path

from goal import weights
from goal.errors import UserError
from goal.exports import card, folders

log = logging.getLogger(__name__)


def run(path: Path, folder: Path, library: str) -> None:
    """Write the model at `path` into `folder` for a library: open_clip, transformers or onnx.

    Raises UserError for weights that cannot be read, if the disk refuses, and for a folder that is not empty:
    files of an earlier export would mix with the new ones.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; name a new folder")
    model = weights.load(path)
    if library == "onnx":
        from goal.exports import onnx_files

        onnx_files.write(model, folder)
    elif library == "transformers":
        folders.transformers(model, folder)
    else:
        folders.open_clip(model, folder)
    card.write(path, model.spec, library, folder)
    log.info("%s: written for %s; see its README.md", folder, library)
