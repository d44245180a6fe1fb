"""The tables that mining writes: a row per region in regions/<split>/, per sentence in pairs/<split>/."""

import pyarrow as pa

# A box in the image frame, pixels, half open.
SIDES = ("x1", "y1", "x2", "y2")
_BOX = [(side, pa.float32()) for side in SIDES]

REGIONS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        *_BOX,
        ("area_ratio", pa.float32()),
        ("score", pa.float32()),
    ]
)
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        # The sentence is captions[caption][start:end] of the picture, and the caption's sentence-th.
        *((name, pa.int32()) for name in ("caption", "sentence", "start", "end")),
        *_BOX,
        ("similarity", pa.float32()),  # cosine; null where the picture cannot be read
        ("source", pa.string()),
        ("truncated", pa.bool_()),  # the matcher read only the sentence's beginning
        ("dropped", pa.string()),  # why the pair is not to be trained with; empty: it is
    ]
)
# The source of the candidate that is the picture itself.
WHOLE = "whole"
# Values of `dropped`.
WHOLE_WINS = "whole image wins"
NO_REGIONS = "no regions"
UNREADABLE = "unreadable picture"
