"""The root of the project, from which tests name its files."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
