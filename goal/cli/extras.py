"""Packages that only some verbs need: the extras of pyproject.toml."""

from collections.abc import Iterator
from contextlib import contextmanager

from goal.errors import UserError


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Within, import what may not be installed; UserError says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'goal-clip[{extra}]'") from error
