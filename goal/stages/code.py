"""The code stage: for each later stage, a listing of what it can run, by which DVC sees when code changed."""

from pathlib import Path

from goal.runtime import code, files

FOLDER = Path("code")


def run() -> None:
    """Write code/<stage> for every other stage."""
    for stage in code.stages():
        if stage != Path(__file__).stem:
            files.write_text(FOLDER / stage, code.listing(f"stages/{stage}"))
