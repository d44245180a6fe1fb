"""Bring an index up to date with its folder: new and changed pictures are embedded, vanished ones dropped.

Every batch is committed by itself, so the same command goes on after a kill.
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from goal import clip, weights
from goal.clip import Preprocess
from goal.datasets import images
from goal.datasets.images import ImageError
from goal.errors import Interrupted, UserError
from goal.evaluation.embed import prefetched
from goal.runtime import devices, signals
from goal.search import ann, store
from goal.search.store import Card, Entry, Stamp

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)


class Read(NamedTuple):
    """A file that was tried: its view, or why there is none."""

    path: bytes
    view: Tensor | ImageError


class Listing(NamedTuple):
    """What lies below a folder, by the path below it: files, and why other things were not looked into."""

    files: dict[bytes, Stamp]
    unseen: dict[bytes, str]

    def hides(self, path: bytes) -> bool:
        """Whether a file may be there all the same: unseen is not vanished."""
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
        for batch in prefetched(read, todo, params.evaluate.batch_size):
            refused = {one.path: one.view for one in batch if isinstance(one.view, ImageError)}
            views = {one.path: one.view for one in batch if isinstance(one.view, Tensor)}
            vectors = _embed(network, views, device)
            added = [Entry(path, found[path], vector) for path, vector in vectors]
            index.change(added, refused.keys() & known.keys())
            left_out |= {path: error.reason for path, error in refused.items()}
            embedded += len(views)
            progress.update(len(batch))
            if asked() and progress.n < len(todo):
                raise Interrupted(f"{place}: {len(index)} pictures are in; the same command goes on")
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
                # It vanished, or is a link to nothing.
                continue
            except OSError as error:
                fail(error)
                continue
            # A pipe would be waited for.
            if stat.S_ISREG(status.st_mode):
                files[os.path.relpath(path, root)] = Stamp(status.st_size, status.st_mtime_ns)
    return Listing(files, unseen)


def _read(root: bytes, prepare: Preprocess, max_megapixels: float, path: bytes) -> Read:
    try:
        return Read(path, prepare(images.open_image(os.fsdecode(os.path.join(root, path)), max_megapixels)))
    except ImageError as error:
        return Read(path, error)


@torch.inference_mode()
def _embed(
    network: clip.GoalClip, views: dict[bytes, Tensor], device: torch.device
) -> Iterator[tuple[bytes, np.ndarray]]:
    if not views:
        return iter(())
    found = network.encode_images(torch.stack(list(views.values())).to(device), normalize=True)
    return zip(views, found.float().cpu().numpy(), strict=True)
