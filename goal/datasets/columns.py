"""Which column of a row is which: those that params name, or the names that people and published sets use."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from goal.datasets.manifest import SPLITS

if TYPE_CHECKING:
    from goal.config import Folder

# As `plain` writes them. Of several that a row has the first counts.
IMAGES = (
    "image",
    "filename",
    "file_name",
    "path",
    "image_path",
    "filepath",
    "file_path",
    "image_file",
    "img",
)
IMAGES += ("image_file_name", "image_name")
# Of several that a row has the user chooses one.
CAPTIONS = ("caption", "captions", "text", "description")
# Long captions of published sets, which stand beside short ones: PixelProse, Recap-DataComp-1B, DreamLIP.
LONG = ("vlm_caption", "re_caption", "long_caption", "longib_captions", "longsv_captions", "longlla_captions")
# Turns of a dialogue (LLaVA, ShareGPT4V; the later form of the same), whose first answer is the caption.
TURNS = ("conversations", "messages")
ANSWERS = ("gpt", "assistant")
URLS = ("url", "image_url", "img_url", "coco_url")
URL = re.compile(r"(https?|s3|gs|hf|ftp)://", re.IGNORECASE)
# Boxes, for regions.sources: given (given_boxes.py).
BOXES = ("regions", "objects")
# Read where params name no column of splits, in rows that have it.
SPLIT = "split"
SPLIT_NAMES = {split: split for split in SPLITS} | dict.fromkeys(("validation", "valid", "dev"), "val")
SHOWN = 12


@dataclass(frozen=True)
class Columns:
    """The columns that params name; empty: by the names above. short, group: none unless named."""

    image: str = ""
    captions: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    split: str = ""
    group: str = ""

    @classmethod
    def of(cls, settings: "Folder") -> "Columns":
        return cls(
            settings.image_column,
            _several(settings.caption_column),
            _several(settings.short_column),
            settings.split_column,
            settings.group_column,
        )

    @property
    def images(self) -> tuple[str, ...]:
        return (self.image,) if self.image else IMAGES

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of which one or more hold the captions."""
        return self.captions or (*CAPTIONS, *LONG, *TURNS)

    def wanted(self, names: Iterable[str]) -> list[str]:
        """Those of these columns that are to be read."""
        known = {*self.images, *self.texts, *self.short, self.split or SPLIT, self.group, "id", *URLS, *BOXES}
        known = set(map(plain, known))
        return [name for name in names if plain(name) in known]


@lru_cache(maxsize=65536)
def plain(name: str) -> str:
    """A column's name without what people write differently: case, blanks around it, blanks for _."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def value(values: Mapping[str, Any], names: Iterable[str]) -> tuple[str, Any]:
    """The first of these columns that has a value, and the value; "" and None where none has."""
    return next(((name, values[name]) for name in names if values.get(name) is not None), ("", None))


def answer(turns: Any) -> Any:
    """The first answer in a dialogue, without its mark for the picture; None where there is none."""
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in ANSWERS:
            said = turn.get("value", turn.get("content"))
            return said.replace("<image>", "").strip() if isinstance(said, str) else said
    return None


def shown(names: Iterable[str]) -> str:
    """Names for a message, in order; of very many only the first."""
    ordered = sorted(map(str, names))
    more = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {more:,} more" if more > 0 else "") or "none"


def _several(names: str | list[str]) -> tuple[str, ...]:
    return tuple(filter(None, [names] if isinstance(names, str) else names))
