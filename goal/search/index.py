"""Bring an index up to date with its folder: new and changed pictures are embedded, deleted ones dropped.

Every batch is a commit of its own, so the same command resumes after a kill.
"""

import logging
import os
import stat
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from goal import clip, weights
from goal.clip import Preprocess
from goal.datasets import images, prefetch
from goal.datasets.images import ImageError
from goal.errors import Interrupted, UserError
from goal.model import embedding
from goal.model.network import GoalClip
from goal.runtime import devices, signals
from goal.search import ann, store
from goal.search.store import Card, Entry, Stamp

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)


class Listing(NamedTuple):
    """What lies below a folder, by the path below it: files, and why other things were not read."""

    files: dict[bytes, Stamp]
    unseen: dict[bytes, str]

    def hides(self, path: bytes) -> bool:
        """Whether a file may still exist below a folder that could not be read."""
        parts = path.split(b"/")
        return any(b"/".join(parts[:end]) in self.unseen for end in range(1, len(parts) + 1))


def run(params: "Params", folder: Path, place: Path, model: Path, name: str) -> None:
    """Index the pictures below `folder` at `place` with the model that the user called `name`.

    Files that are no usable pictures are counted by reason; each run tries them again. Folders that cannot be
    read and linked ones are counted too, and nothing below them is dropped. Raises UserError for a folder
    without a file (a disk that is not mounted looks like that: nothing is dropped) and for an index of
    another model or folder; Interrupted after a signal, when what was embedded is saved.
    """
    root = os.fsencode(folder.resolve())
    listing = _list(root, os.fsencode(place.resolve()))
    found = listing.files
    if not found:
        raise UserError(f"{folder}: holds no file; nothing was indexed or dropped")
    network = weights.load(model)
    spec = network.spec
    index = store.create(
        place, Card(os.fsdecode(root), name, weights.digest(model), spec.name, spec.embed_dim)
    )
    known = index.stamps()
    gone = {path for path in known.keys() - found.keys() if not listing.hides(path)}
    index.change([], gone)
    todo = sorted(path for path, stamp in found.items() if known.get(path) != stamp)
    device = devices.resolve(params.train.device, "train.device")
    network.to(device).eval()
    read = partial(_read, root, clip.preprocess(spec), params.data.max_megapixels)
    left_out = dict(listing.unseen)
    embedded = 0
    with signals.deferred() as asked, tqdm(total=len(todo), unit=" files") as progress:
        for batch in prefetch.batches_ahead(read, todo, params.evaluate.batch_size):
            refused = {path: why for path, why in batch if isinstance(why, str)}
            views = {path: view for path, view in batch if isinstance(view, Tensor)}
            index.change(_entries(network, views, found), refused.keys() & known.keys())
            left_out |= refused
            embedded += len(views)
            progress.update(len(batch))
            if asked() and progress.n < len(todo):
                raise Interrupted(f"{place}: {len(index)} pictures are indexed; the same command goes on")
    ann.prepare(index)
    log.info(
        "%s: %d pictures: %d embedded, %d as before; %d dropped, their files are gone",
        *(place, len(index), embedded, len(found) - len(todo), len(gone)),
    )
    for reason, count in Counter(left_out.values()).most_common():
        example = next(path for path, why in left_out.items() if why == reason)
        log.warning("left out: %d x %s, such as %s", count, reason, store.shown(example))


def _list(root: bytes, place: bytes) -> Listing:
    """Everything below `root` but the index itself."""
    files: dict[bytes, Stamp] = {}
    unseen: dict[bytes, str] = {}

    def fail(error: OSError) -> None:
        if error.filename == root:
            raise UserError(f"{store.shown(root)}: {error.strerror}; nothing was indexed") from error
        unseen[os.path.relpath(error.filename, root)] = error.strerror

    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = [name for name in folders if os.path.join(folder, name) != place]
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                unseen[os.path.relpath(os.path.join(folder, name), root)] = "linked folder, not followed"
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                # Deleted meanwhile, or a link to nothing.
                continue
            except OSError as error:
                fail(error)
                continue
            # Opening a pipe would wait for its writer.
            if stat.S_ISREG(status.st_mode):
                files[os.path.relpath(path, root)] = Stamp(status.st_size, status.st_mtime_ns)
    return Listing(files, unseen)


def _read(root: bytes, prepare: Preprocess, max_megapixels: float, path: bytes) -> tuple[bytes, Tensor | str]:
    """A file's path and its view, or why there is none."""
    try:
        return path, prepare.view(images.open_image(os.fsdecode(os.path.join(root, path)), max_megapixels))
    except ImageError as error:
        return path, error.reason


def _entries(network: GoalClip, views: dict[bytes, Tensor], stamps: dict[bytes, Stamp]) -> list[Entry]:
    if not views:
        return []
    vectors = F.normalize(embedding.of_views(network, list(views.values())), dim=1).numpy()
    return [Entry(path, stamps[path], vector) for path, vector in zip(views, vectors, strict=True)]
