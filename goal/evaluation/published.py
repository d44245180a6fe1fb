"""What papers report, with the protocol as far as it is stated (recall@1 in percent).

A published number stands beside one of ours only where data set, benchmark, network and gallery are the same;
a gallery that its source does not state is `None` and equals nothing.
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
    """Recall@1 of one setting, both ways; `images` is the gallery, None where not stated."""

    data_set: str
    network: str
    images: int | None
    setting: str
    text_to_image: float
    image_to_text: float
    source: str


def _rows(
    data_set: str, network: str, images: int | None, source: str, *rows: tuple[str, float, float]
) -> tuple[Published, ...]:
    return tuple(Published(data_set, network, images, *row, source) for row in rows)


# GOAL's DOCCI file holds 5,100 rows: the 5,000 of `test` and the 100 of `qual_test`.
PUBLISHED = (
    *_rows(
        "docci",
        B16,
        5100,
        GOAL_PAGE,
        ("global", 72.41, 72.04),
        ("local", 65.82, 65.73),
        ("global+local", 72.08, 71.80),
        ("GOAL", 79.47, 79.43),
    ),
    *_rows(
        "docci",
        L14,
        5100,
        GOAL_PAGE,
        ("global", 74.00, 73.55),
        ("local", 67.39, 66.33),
        ("global+local", 74.75, 74.55),
        ("GOAL", 84.37, 82.57),
    ),
    *_rows("dci", L14, 1999, NOTES, ("global", 65.73, 65.73), ("GOAL", 76.89, 76.59)),
    *_rows(
        "docci",
        B16,
        None,
        f"{FAST_GOAL} VI",
        ("global, batch 64", 76.02, 75.51),
        ("global+local, batch 64", 78.27, 78.37),
        ("all terms, batch 64", 79.06, 78.94),
    ),
    *_rows(
        "docci",
        B16,
        None,
        f"{FAST_GOAL} V",
        ("GOAL, batch 64", 81.12, 81.00),
        ("FLISM, batch 64", 81.65, 80.71),
        ("FLISM + GLIT100k, batch 64", 84.16, 83.16),
    ),
    *_rows(
        "dci",
        B16,
        1999,
        f"{FAST_GOAL} V",
        ("GOAL, batch 64", 73.19, 73.04),
        ("FLISM, batch 64", 72.99, 72.44),
        ("FLISM + GLIT100k, batch 64", 78.29, 77.34),
    ),
    *_rows(
        "docci",
        B16,
        None,
        f"{FAST_GOAL} III, trained on another set",
        ("CLIP", 58.53, 58.80),
        ("Long-CLIP", 71.63, 63.29),
        ("GOAL", 71.22, 72.18),
    ),
    *_rows(
        "coco",
        B16,
        5000,
        f"{FAST_GOAL} IV, not trained on COCO",
        ("CLIP", 33.95, 54.14),
        ("Long-CLIP", 40.83, 57.24),
        ("GOAL", 38.86, 59.28),
    ),
    *_rows(
        "docci",
        L14,
        None,
        f"{HN_CLIP}, from Long-CLIP-L, batch 128",
        ("GOAL", 81.53, 80.86),
        ("plain InfoNCE", 86.45, 84.10),
        ("HN-CLIP", 88.25, 86.24),
    ),
    *_rows("docci", L14, None, f"{DEBIAS}, not trained on the set", ("DeBias-CLIP", 85.6, 85.2)),
    *_rows("urban1k", L14, 1000, f"{DEBIAS}, not trained on the set", ("DeBias-CLIP", 95.2, 95.2)),
)


def of(data_set: str, network: str, images: int) -> tuple[list[Published], list[Published]]:
    """Published numbers of a data set's `test` benchmark: those of the same protocol, and the others."""
    known = [row for row in PUBLISHED if row.data_set == data_set]
    same = [row for row in known if (row.network, row.images) == (network, images)]
    return same, [row for row in known if row not in same]
