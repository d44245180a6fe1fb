"""What `goal search --show` writes: the pictures that were found, in one file that needs no network."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from goal.datasets.images import ImageError, open_image
from goal.reporting import pictures, templates
from goal.runtime import files
from goal.search import store
from goal.search.query import Hit, Reading

log = logging.getLogger(__name__)


def write(path: Path, asked: Mapping[str, str], hits: Sequence[Hit], max_megapixels: float) -> None:
    """Write the page of an answer to what `text` or `picture` describes; files that are gone are left out."""
    found = []
    for hit in hits:
        file = Path(os.fsdecode(hit.path))
        try:
            image = pictures.small(open_image(file, max_megapixels))
        except ImageError as error:
            log.warning("left out: %s: %s", store.shown(hit.path), error.reason)
            continue
        shown = {"image": image, "address": file.as_uri(), "name": store.shown(hit.path)}
        found.append(shown | {"score": f"{hit.score:.3f}"})
    files.write_text(path, templates.render("answer.html", asked=asked, found=found))


def text(reading: Reading) -> dict[str, str]:
    """A query text: the part that the model reads, and the rest."""
    return {"read": reading.head, "unread": reading.rest}


def picture(path: Path, max_megapixels: float) -> dict[str, str]:
    """A query picture."""
    return {"image": pictures.small_file(path, max_megapixels), "name": store.shown(os.fsencode(path))}
