"""For all tests: beartype checks the shapes that goal's pure functions are annotated with; small disks."""

from jaxtyping import install_import_hook

install_import_hook(
    [f"goal.{name}" for name in ("boxes", "clip", "losses", "metrics", "model.packing", "positions", "text")],
    "beartype.beartype",
)

pytest_plugins = ["tests.disks"]
