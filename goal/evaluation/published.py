"""Recall@1 that papers report, in percent, with the protocol as far as their text states it.

A published number stands beside ours only if data set, network and gallery are the same; a gallery that the
source does not state is `None` and equals no other.
"""

from dataclasses import dataclass

B16, L14 = "ViT-B-16", "ViT-L-14"
GOAL_PAGE = "GOAL project page (arXiv 2503.17782)"
NOTES = "notes on GOAL (arXiv 2503.17782)"
FAST_GOAL = "FAST-GOAL (arXiv 2605.26615), table"
HN_CLIP = "HN-CLIP (arXiv 2608.18521)"
DEBIAS = "DeBias-CLIP (arXiv 2602.22419)"


@dataclass(frozen=True)
class Published:
    """Recall@1 of one setting in both directions; `images` is the gallery, None if not stated."""

    data_set: str
    network: str
    images: int | None
    setting: str
    text_to_image: float
    image_to_text: float
    source: str


# GOAL's DOCCI file holds 5,100 rows: the 5,000 of `test` and the 100 of `qual_test`.
_ROWS = (
    ("docci", B16, 5100, "global", 72.41, 72.04, GOAL_PAGE),
    ("docci", B16, 5100, "local", 65.82, 65.73, GOAL_PAGE),
    ("docci", B16, 5100, "global+local", 72.08, 71.80, GOAL_PAGE),
    ("docci", B16, 5100, "GOAL", 79.47, 79.43, GOAL_PAGE),
    ("docci", L14, 5100, "global", 74.00, 73.55, GOAL_PAGE),
    ("docci", L14, 5100, "local", 67.39, 66.33, GOAL_PAGE),
    ("docci", L14, 5100, "global+local", 74.75, 74.55, GOAL_PAGE),
    ("docci", L14, 5100, "GOAL", 84.37, 82.57, GOAL_PAGE),
    ("dci", L14, 1999, "global", 65.73, 65.73, NOTES),
    ("dci", L14, 1999, "GOAL", 76.89, 76.59, NOTES),
    ("docci", B16, None, "global, batch 64", 76.02, 75.51, f"{FAST_GOAL} VI"),
    ("docci", B16, None, "global+local, batch 64", 78.27, 78.37, f"{FAST_GOAL} VI"),
    ("docci", B16, None, "all terms, batch 64", 79.06, 78.94, f"{FAST_GOAL} VI"),
    ("docci", B16, None, "GOAL, batch 64", 81.12, 81.00, f"{FAST_GOAL} V"),
    ("docci", B16, None, "FLISM, batch 64", 81.65, 80.71, f"{FAST_GOAL} V"),
    ("docci", B16, None, "FLISM + GLIT100k, batch 64", 84.16, 83.16, f"{FAST_GOAL} V"),
    ("dci", B16, 1999, "GOAL, batch 64", 73.19, 73.04, f"{FAST_GOAL} V"),
    ("dci", B16, 1999, "FLISM, batch 64", 72.99, 72.44, f"{FAST_GOAL} V"),
    ("dci", B16, 1999, "FLISM + GLIT100k, batch 64", 78.29, 77.34, f"{FAST_GOAL} V"),
    ("docci", B16, None, "CLIP", 58.53, 58.80, f"{FAST_GOAL} III, trained on another set"),
    ("docci", B16, None, "Long-CLIP", 71.63, 63.29, f"{FAST_GOAL} III, trained on another set"),
    ("docci", B16, None, "GOAL", 71.22, 72.18, f"{FAST_GOAL} III, trained on another set"),
    ("coco", B16, 5000, "CLIP", 33.95, 54.14, f"{FAST_GOAL} IV, not trained on COCO"),
    ("coco", B16, 5000, "Long-CLIP", 40.83, 57.24, f"{FAST_GOAL} IV, not trained on COCO"),
    ("coco", B16, 5000, "GOAL", 38.86, 59.28, f"{FAST_GOAL} IV, not trained on COCO"),
    ("docci", L14, None, "GOAL", 81.53, 80.86, f"{HN_CLIP}, from Long-CLIP-L, batch 128"),
    ("docci", L14, None, "plain InfoNCE", 86.45, 84.10, f"{HN_CLIP}, from Long-CLIP-L, batch 128"),
    ("docci", L14, None, "HN-CLIP", 88.25, 86.24, f"{HN_CLIP}, from Long-CLIP-L, batch 128"),
    ("docci", L14, None, "DeBias-CLIP", 85.6, 85.2, f"{DEBIAS}, not trained on the set"),
    ("urban1k", L14, 1000, "DeBias-CLIP", 95.2, 95.2, f"{DEBIAS}, not trained on the set"),
)
PUBLISHED = tuple(Published(*row) for row in _ROWS)


def of(data_set: str, network: str, images: int) -> tuple[list[Published], list[Published]]:
    """Published numbers of a data set's `test` benchmark: those of the same protocol, and the others."""
    known = [row for row in PUBLISHED if row.data_set == data_set]
    same = [row for row in known if (row.network, row.images) == (network, images)]
    return same, [row for row in known if row not in same]
