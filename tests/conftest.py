"""For all tests: beartype checks the shapes of goal's pure functions; threads as they were; small disks."""

import sys
from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

install_import_hook(
    [f"goal.{name}" for name in ("boxes", "clip", "losses", "metrics", "positions", "text")],
    "beartype.beartype",
)

pytest_plugins = ["tests.disks"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Mining sets how many threads a process has: the next test computes with as many as without it."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    torch = sys.modules.get("torch")
    if torch and before:
        torch.set_num_threads(before)
