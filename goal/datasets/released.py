"""What all published data sets share: terms, the folder of their files, counts that must hold, the manifest.

A set's own file says where it comes from and turns its layout into rows; see docs/data.md.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.config import paths
from goal.datasets import folder, manifest
from goal.datasets.captions_file import Line
from goal.datasets.folder_rows import Gathering
from goal.datasets.manifest import Collected, Row
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

SPLIT = "split"


@dataclass(frozen=True)
class Release:
    """A published set: its name in params, its page, and the licence of its pictures and captions.

    by_hand: what a user must fetch in person, and where to put it; empty: nothing.
    """

    name: str
    page: str
    licence: str
    by_hand: str = ""


def root(params: "Params", release: Release) -> Path:
    """The folder that holds the set's files, or will: absolute, so that it holds from any working folder.

    Raises UserError, after showing the terms, until data.download.accept_terms names this set.
    """
    settings = params.data.download
    if settings.accept_terms != release.name:
        log.warning("%s (%s)\n  licence: %s", release.name, release.page, release.licence)
        if release.by_hand:
            log.warning("  by hand: %s", release.by_hand)
        raise UserError(
            f"{release.name}: its terms are yours to accept: read them at {release.page}, then set"
            f" data.download.accept_terms: {release.name}"
        )
    return Path(settings.root).resolve() if settings.root else paths.downloads(release.name)


def gallery(params: "Params", release: Release, known: tuple[int, ...]) -> int:
    """The number of test pictures that params ask for, one of `known`, whose first is the usual one."""
    wanted = params.data.download.gallery or known[0]
    if wanted not in known:
        raise UserError(
            f"params.yaml: data.download.gallery: {release.name} has none of {wanted}, but"
            f" {' or '.join(map(str, known))}"
        )
    return wanted


def line(row: str, name: str, image: str, captions: list[Any], split: str) -> Line:
    """A row of a set: picture `image`, relative to the folder of pictures, with its captions."""
    return Line(row, {"id": name, "image": image, "captions": captions, SPLIT: split})


def collect(params: "Params", release: Release, lines: Iterable[Line], pictures: Path) -> Collected:
    """The rows whose pictures, below `pictures`, decode; the others are rejected with reasons.

    Raises UserError, with what is to be done by hand, where there is no picture at all.
    """
    gathering = Gathering(pictures, SPLIT)
    for one in lines:
        gathering.add(one)
    splits: dict[str, list[Row]] = {split: [] for split in manifest.SPLITS}
    for row, split in folder.probe(pictures, gathering, params.data.max_megapixels, release.name):
        splits[split].append(row)
    reasons = Counter(rejected.reason for rejected in gathering.rejected)
    if not any(splits.values()):
        reason = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        raise UserError(f"{pictures}: no usable picture ({reason}). {release.by_hand}".strip())
    if reasons["not found"]:
        log.warning(
            "%s: %d pictures are missing in %s: numbers on this set are not comparable with others'",
            release.name,
            reasons["not found"],
            pictures,
        )
    return Collected(splits, rejected=gathering.rejected)


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


def first_folder(*candidates: Path) -> Path | None:
    """The first of the folders that is there and holds something."""
    return next((path for path in candidates if path.is_dir() and any(path.iterdir())), None)
