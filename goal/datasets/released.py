"""Published data sets: their terms, the folder of their files, the counts that must hold, their rows.

Each set's own file turns its layout into rows; see docs/data.md.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.config import paths
from goal.datasets import manifest
from goal.datasets.captions_file import Line
from goal.datasets.columns import SPLIT, Columns
from goal.datasets.folder_rows import Gathering, count_reasons
from goal.datasets.manifest import Collected
from goal.datasets.unpack import unpack
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

GOAL_LISTS = "https://github.com/PerceptualAI-Lab/GOAL/tree/main/datasets"
_SA_1B = "accept the SA-1B licence at https://ai.meta.com/datasets/segment-anything-downloads"

# Finds a set's rows and the folder of their pictures, in the folder of its files and for a gallery of so many
# test pictures.
Read = Callable[[Path, int], tuple[Iterable[Line], Path]]


@dataclass(frozen=True)
class Release:
    """A published set: its page, and the licence of its pictures and captions.

    galleries: how many test pictures it can have, the usual number first. by_hand: what a user must fetch in
    person, and where to put it; empty: nothing.
    """

    page: str
    licence: str
    galleries: tuple[int, ...] = ()
    by_hand: str = ""


RELEASES = {
    "docci": Release(
        page="https://google.github.io/docci",
        licence="CC BY 4.0, pictures and descriptions: name the authors (Onoe et al., 2024)",
        # The paper's own test, and that of GOAL's list, which has the pictures for qualitative tests in it.
        galleries=(5000, 5100),
    ),
    "dci": Release(
        page="https://github.com/facebookresearch/DCI",
        licence="CC BY-NC 4.0, not commercial; pictures under the SA-1B research licence",
        galleries=(1999, 7444, 7602, 7805),
        by_hand=f"{_SA_1B}, download sa_000138.tar (11 GB) there, put it, or its .jpg files in a folder"
        " photos/, into data.download.root; beside it, for the usual gallery of 1999 pictures, DCI_test.json"
        f" of {GOAL_LISTS}",
    ),
    "sharegpt4v": Release(
        page="https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
        licence="captions CC BY-NC 4.0 and the terms of OpenAI; pictures under the SA-1B research licence",
        galleries=(1000,),
        by_hand=f"{_SA_1B} and put the pictures that the list names into data.download.root as"
        " sam/images/sa_<n>.jpg (the page of ShareGPT4V links an archive of just the SA-1B pictures it uses)",
    ),
    "urban1k": Release(
        page="https://huggingface.co/datasets/BeichenZhang/Urban1k",
        licence="the page states none: pictures of Visual Genome (CC BY 4.0), captions made with GPT-4V",
        galleries=(1000,),
    ),
    "coco": Release(
        page="https://cocodataset.org/#termsofuse",
        licence="captions CC BY 4.0; the pictures are under the terms of Flickr, each under its own licence",
        galleries=(5000,),
    ),
    "flickr30k": Release(
        page="https://shannon.cs.illinois.edu/DenotationGraph",
        licence="research and education only, not commercial; the pictures are under the terms of Flickr",
        galleries=(1000,),
        by_hand="fill in the form on that page; put what it gives you into data.download.root as"
        " flickr30k-images.tar.gz, or unpacked as flickr30k-images/",
    ),
    "goal_lists": Release(
        page="https://github.com/PerceptualAI-Lab/GOAL",
        licence="that of the set behind each list: DOCCI CC BY 4.0, DCI CC BY-NC 4.0",
        by_hand=f"put lists of {GOAL_LISTS} into data.path and the pictures they name, in any folders, into"
        " data.download.root",
    ),
}


def collect(read: Read, params: "Params", target: Path) -> Collected:
    """The set params.data.source, whose layout `read` knows; nothing is written to `target`."""
    root = folder(params)
    return rows(params, *read(root, gallery(params)))


def folder(params: "Params") -> Path:
    """The folder that holds the set's files, or will: absolute, so that it holds from any working folder.

    Raises UserError, after showing the terms, until data.download.accept_terms names this set.
    """
    name, settings = params.data.source, params.data.download
    release = RELEASES[name]
    if settings.accept_terms != name:
        log.warning("%s (%s)\n  licence: %s", name, release.page, release.licence)
        if release.by_hand:
            log.warning("  by hand: %s", release.by_hand)
        raise UserError(
            f"{name}: its terms are yours to accept: read them at {release.page}, then set"
            f" data.download.accept_terms: {name}"
        )
    return Path(settings.root).resolve() if settings.root else paths.downloads(name)


def gallery(params: "Params") -> int:
    """The number of test pictures that params ask for; raises UserError where the set has no such gallery."""
    known = RELEASES[params.data.source].galleries
    wanted = params.data.download.gallery or known[0]
    if wanted not in known:
        raise UserError(
            f"params.yaml: data.download.gallery: {params.data.source} has none of {wanted}, but"
            f" {' or '.join(map(str, known))}"
        )
    return wanted


def line(row: str, name: str, image: str, captions: list[Any], split: str) -> Line:
    """A row of a set: picture `image`, relative to the folder of pictures, with its captions."""
    return Line(row, {"id": name, "image": image, "captions": captions, SPLIT: split})


def rows(params: "Params", lines: Iterable[Line], pictures: Path) -> Collected:
    """The rows whose pictures, below `pictures`, decode; the others are rejected with reasons.

    Raises UserError where there is no picture at all, with what is to be done by hand, and where more rows
    are lost than data.max_rejected allows.
    """
    name = params.data.source
    gathering = Gathering(pictures, Columns(split=SPLIT), published=True)
    for one in lines:
        gathering.add(one)
    splits = manifest.by_split((one.row, one.split) for one in gathering.probe(params.data))
    if params.data.limit:
        log.warning("%s: data.limit %d: numbers are not comparable with others'", name, params.data.limit)
    if not any(splits.values()):
        reasons = count_reasons(gathering.rejected).items()
        reason = ", ".join(f"{count} x {reason}" for reason, count in reasons)
        raise UserError(f"{pictures}: no usable picture ({reason}). {RELEASES[name].by_hand}".strip())
    check_lost(params, gathering)
    return Collected(splits, rejected=gathering.rejected, cleaned=gathering.cleaned)


def check_lost(params: "Params", gathering: Gathering) -> None:
    """Warn of every row of a published set that is lost; raises UserError beyond data.max_rejected."""
    gathering.check_rejected(gathering.folder, params.data.max_rejected)
    if gathering.rejected:
        reasons = count_reasons(gathering.rejected).items()
        log.warning(
            "%s: rows are lost in %s (%s): numbers on this set are not comparable with others'",
            params.data.source,
            gathering.folder,
            ", ".join(f"{count} x {reason}" for reason, count in reasons),
        )


def expect(source: Path, what: str, found: int, expected: int) -> None:
    """Raise UserError where a published file does not hold as much as it should."""
    if found != expected:
        raise UserError(
            f"{source}: {found:,} {what}, expected {expected:,}: another version, or cut off; delete it to"
            " have it fetched again"
        )


def read_json(path: Path) -> Any:
    """A JSON file; raises UserError where it is missing or is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error


def first_folder(root: Path, *places: str) -> Path | None:
    """The first of the folders `places` below `root` that is there and holds something."""
    return next((path for place in places if (path := root / place).is_dir() and any(path.iterdir())), None)


def by_hand(name: str, root: Path, *places: str, archive: str = "") -> Path:
    """The set's folder of pictures, which a user has put below `root`: one of `places`, or in an archive.

    The archive is unpacked to the folder `pictures`. Raises UserError, with what is to be done, where neither
    is there.
    """
    found = first_folder(root, *places)
    if not found and archive and (root / archive).exists():
        found = first_folder(unpack(root / archive, root / "pictures").parent, *places)
    if not found:
        raise UserError(f"{root}: no pictures of {name}: {RELEASES[name].by_hand}")
    return found
