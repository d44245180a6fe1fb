"""Which store keeps the record: its uri for programs, and for people without the password."""

import os
from urllib.parse import urlsplit

from goal.config import paths

SQLITE = "sqlite:///"


def uri() -> str:
    """Where MLflow keeps its record: MLFLOW_TRACKING_URI, else a file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{paths.home() / 'mlflow.db'}"


def address() -> str:
    """The uri for people: without a password."""
    parts = urlsplit(uri())
    return uri().replace(f"{parts.username}:{parts.password}@", "") if parts.password else uri()


def hidden(text: str) -> str:
    """A text without the password of the uri."""
    password = urlsplit(uri()).password
    return text.replace(password, "***") if password else text
