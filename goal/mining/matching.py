"""LISM's matching on one shard: every sentence takes the nearest candidate, a region or the whole picture.

Crops of many pictures share a batch; pictures are decoded, cut and scaled by threads while the network works
(paper, section 3.1).
Letters: K candidates of a picture, S sentences of its captions.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from goal import boxes, clip, text
from goal.boxes import BoxTuple
from goal.datasets import given_boxes, manifest, prefetch, slices
from goal.datasets.images import ImageError
from goal.datasets.manifest import Row
from goal.mining import matcher as matchers
from goal.mining import reading, shards
from goal.mining.matcher import Matcher
from goal.mining.mined import NO_REGIONS, PAIRS, REGIONS, SIDES, UNREADABLE, WHOLE, WHOLE_WINS
from goal.runtime import task_progress

# Cosines in single precision that are closer are equal.
TIE = 1e-6


class Candidate(NamedTuple):
    """A part of a picture, image frame, the source that proposed it, and what a given box is said to show."""

    box: BoxTuple
    source: str
    phrase: str = ""


class Mention(NamedTuple):
    """A sentence of a picture's captions: captions[caption][start:end]."""

    caption: int
    sentence: int
    start: int
    end: int
    text: str


class Choice(NamedTuple):
    """What a sentence took, and the cosine; None where the picture cannot be read."""

    candidate: Candidate
    similarity: float | None


@dataclass(frozen=True)
class Match:
    """Work on a shard: the best candidate of every sentence of every caption.

    regions: the folder of the region shards, of `region_shard` pictures each; matcher, digest: a file of
    weights; params: the section `pairs` as JSON; root: the folder to which the manifest's paths are
    relative; boxes: the table of boxes that came with the pictures, "" where there is none.
    """

    manifest: str
    regions: str
    region_shard: int
    matcher: str
    digest: str
    params: str
    max_megapixels: float
    root: str
    boxes: str = ""

    def __call__(self, start: int, stop: int) -> pa.Table:
        matcher = matchers.load(self.matcher, self.digest, self.params)
        rows = slices.rows(Path(self.manifest), start, stop)
        parameters = json.loads(self.params)["sentences"]
        mentions = {row.id: _mentions(row, parameters) for row in rows}
        candidates = self._candidates([row for row in rows if mentions[row.id]], start, stop)
        sentences = matcher.sentences({one.text for found in mentions.values() for one in found})
        unreadable: Counter[str] = Counter()
        chosen: dict[str, list[Choice]] = {}
        crops = self._crops(rows, candidates, matcher, unreadable)
        for name, group in groupby(matcher.crops(crops), key=itemgetter(0)):
            vectors = np.stack([vector for _, vector in group])
            # A sentence that occurs twice makes the same choice: it is compared once.
            texts = list(dict.fromkeys(one.text for one in mentions[name]))
            cosines = vectors @ np.stack([sentences[one].vector for one in texts]).T
            cosines = _told(cosines, candidates[name], texts)
            choices = dict(zip(texts, _nearest(cosines, candidates[name]), strict=True))
            chosen[name] = [choices[one.text] for one in mentions[name]]
            task_progress.advance(1)
        lines = []
        for row in rows:
            whole = [Choice(_whole(row), None)] * len(mentions[row.id])
            for mention, choice in zip(mentions[row.id], chosen.get(row.id, whole), strict=True):
                regions = len(candidates[row.id]) - 1
                lines.append(_line(row.id, mention, choice, sentences[mention.text].truncated, regions))
        task_progress.advance(len(rows) - len(chosen))
        blank = sum(len(row.captions) - len({one.caption for one in mentions[row.id]}) for row in rows)
        notes = {
            "pictures": len(rows),
            "captions": sum(len(row.captions) for row in rows),
            "captions_without_sentence": blank,
            "unreadable": unreadable,
        }
        return shards.with_notes(pa.Table.from_pylist(lines, PAIRS), notes)

    def _candidates(self, rows: list[Row], start: int, stop: int) -> dict[str, list[Candidate]]:
        """Each picture itself and, after it, its regions but those that take in every pixel of it."""
        found = {row.id: [_whole(row)] for row in rows}
        given = given_boxes.read(Path(self.boxes), list(found)) if self.boxes else {}
        phrases = {(name, one.box): one.phrase for name, own in given.items() for one in reversed(own)}
        for number in range(start // self.region_shard, (stop - 1) // self.region_shard + 1):
            path = Path(self.regions) / shards.name(number)
            for region in manifest.read_table(path, REGIONS, "regions").to_pylist():
                box, known = tuple(region[side] for side in SIDES), found.get(region["id"])
                if known and boxes.pixels(box, _size(known[0])) != known[0].box:
                    phrase = phrases.get((region["id"], box), "")
                    known.append(Candidate(box, region["source"], phrase))
        return found

    def _crops(
        self,
        rows: list[Row],
        candidates: dict[str, list[Candidate]],
        matcher: Matcher,
        unreadable: Counter[str],
    ) -> Iterator[tuple[str, Tensor]]:
        """(picture id, view) of every candidate, picture by picture; counts the pictures that have none."""
        read = partial(self._views, candidates, matcher.prepare)
        asked = [row for row in rows if row.id in candidates]
        for row, views in zip(asked, prefetch.ahead(read, asked, matcher.threads), strict=True):
            if isinstance(views, ImageError):
                unreadable[reading.kind(views)] += 1
            else:
                yield from ((row.id, view) for view in views)

    def _views(
        self, candidates: dict[str, list[Candidate]], prepare: clip.Preprocess, row: Row
    ) -> list[Tensor] | ImageError:
        image = reading.picture(row, Path(self.root), self.max_megapixels)
        if isinstance(image, ImageError):
            return image
        return [prepare.view(image.crop(boxes.pixels(one.box, image.size))) for one in candidates[row.id]]


def _mentions(row: Row, parameters: str) -> list[Mention]:
    return [
        Mention(number, index, one.start, one.end, one.text)
        for number, caption in enumerate(row.captions)
        for index, one in enumerate(text.split_sentences(caption, parameters))
    ]


def _whole(row: Row) -> Candidate:
    return Candidate((0.0, 0.0, float(row.width), float(row.height)), WHOLE)


def _size(whole: Candidate) -> tuple[int, int]:
    return int(whole.box[2]), int(whole.box[3])


def _told(cosines: np.ndarray, candidates: list[Candidate], texts: list[str]) -> np.ndarray:
    """The cosines (K, S); of a sentence that says the phrase of given boxes, those of these boxes alone."""
    phrases = {one.phrase for one in candidates if one.phrase}
    for column, one in enumerate(texts if phrases else ()):
        said = {phrase for phrase in phrases if re.search(rf"\b{re.escape(phrase)}\b", one, re.IGNORECASE)}
        if said:
            others = [candidate.phrase not in said for candidate in candidates]
            cosines[others, column] = -np.inf
    return cosines


def _nearest(cosines: np.ndarray, candidates: list[Candidate]) -> list[Choice]:
    """The choice of each column of cosines (K, S); of equal candidates the first: the whole before parts.

    Equal up to TIE: crops of the same pixels differ in their last bits.
    """
    best = (cosines >= cosines.max(axis=0) - TIE).argmax(axis=0)
    return [Choice(candidates[row], float(cosines[row, column])) for column, row in enumerate(best)]


def _line(name: str, mention: Mention, choice: Choice, truncated: bool, regions: int) -> dict[str, object]:
    dropped = ""
    if choice.similarity is None:
        dropped = UNREADABLE
    elif not regions:
        dropped = NO_REGIONS
    elif choice.candidate.source == WHOLE:
        dropped = WHOLE_WINS
    place = {key: value for key, value in mention._asdict().items() if key != "text"}
    sides = dict(zip(SIDES, choice.candidate.box, strict=True))
    return {
        "id": name,
        **place,
        **sides,
        "similarity": choice.similarity,
        "source": choice.candidate.source,
        "truncated": truncated,
        "dropped": dropped,
    }
