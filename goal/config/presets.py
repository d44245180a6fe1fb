"""Complete parameter files to start from: list them, read one, write one over params.yaml."""

import os
from pathlib import Path

from goal import config
from goal.errors import UserError

FOLDER = Path("presets")


def names() -> list[str]:
    """The presets of this checkout, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file of a preset.

    Raises UserError that lists the known names.
    """
    if name not in names():
        raise UserError(f"no preset {name!r}; there are: {', '.join(names()) or 'none in this folder'}")
    return FOLDER / f"{name}.yaml"


def use(name: str) -> config.Params:
    """Validate a preset and write it over params.yaml, wholly or not at all."""
    source = path_of(name)
    params = config.load(source)
    draft = config.PARAMS_FILE.with_suffix(".yaml.tmp")
    draft.write_bytes(source.read_bytes())
    os.replace(draft, config.PARAMS_FILE)
    return params
