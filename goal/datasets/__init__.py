"""Sources of pictures and captions, a file each, and what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from goal.datasets.manifest import Rejected, Row

if TYPE_CHECKING:
    import pyarrow as pa

    from goal.config import Params


@dataclass(frozen=True)
class Collected:
    """What a source found: rows a split (none: empty), further tables by file name, rejected rows."""

    splits: dict[str, list[Row]]
    tables: "dict[str, pa.Table]" = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


# Reads params; pictures that it makes go below the folder, which becomes data/<name>/, and rows name them by
# layout.data_dir(name).
Source = Callable[["Params", Path], Collected]
