"""The code stage: lists the code that each other stage can run, so that DVC sees when it changes."""

from pathlib import Path

from goal.runtime import code, files

FOLDER = Path("code")


def run() -> None:
    """Write code/<stage>, the listing of goal.runtime.code, for every other stage."""
    for stage in code.stages():
        if stage != Path(__file__).stem:
            files.write_text(FOLDER / stage, code.listing(f"stages/{stage}"))
