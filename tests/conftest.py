"""Shapes are checked at test time only: beartype reads the jaxtyping annotations of goal's pure functions."""

from jaxtyping import install_import_hook

install_import_hook(
    [f"goal.{name}" for name in ("boxes", "clip", "losses", "metrics", "model.packing", "positions", "text")],
    "beartype.beartype",
)
