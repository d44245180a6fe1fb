"""The kinds of values that a section of params.yaml holds."""

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _float(value: Any) -> Any:
    # PyYAML reads `5e-6` (no dot) as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _no_home(path: str) -> str:
    # DVC, which watches some of these paths, would look for a folder named `~`.
    if path.startswith("~"):
        raise ValueError(f"~ is not expanded here; write {os.path.expanduser(path)}")
    return path


PathText = Annotated[str, AfterValidator(_no_home)]
Float = Annotated[float, BeforeValidator(_float), Field(allow_inf_nan=False)]
Positive = Annotated[Float, Field(gt=0)]
Weight = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Decay = Annotated[Float, Field(ge=0, lt=1)]
Cosine = Annotated[Float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
WORD = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
Name = Annotated[str, Field(pattern=f"^{WORD}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
