"""Presets: scenes.yaml is the whole default with its comments, the others hold only what differs from it."""

import io
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from goal.config import schema
from goal.errors import UserError
from goal.runtime import files

FOLDER = Path("presets")
DEFAULT = "scenes"
# What belongs to the user: `use` keeps a value that no preset has.
OWN = {"data": ("name", "path"), "register": ("name", "model"), "tracking": ("enabled", "experiment")}
# What else says where and what the user's data are: a preset for the same source keeps all of it.
OWN_DATA = ("name", "path", "max_megapixels", "max_rejected", "digest", "folder", "download")
# Sources that read data.path.
READ_PATH = ("folder", "goal_lists")


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


def load(name: str) -> schema.Params:
    """All parameters of a preset; raises UserError as `config.load` does, and for an unknown name."""
    return schema.parse(_values(name), str(path_of(name)))


def use(name: str, path: Path | None = None) -> dict[str, Any]:
    """Write params.yaml from a preset, wholly or not at all; `path`: the user's data, for data.path.

    Returns what it kept of the user's settings: values by field, such as data.path. Raises UserError for a
    path that is not there or that the preset does not read.
    """
    preset = load(name)
    kept = _own(preset.model_dump(by_alias=True)["data"]) if schema.PARAMS_FILE.exists() else {}
    if path is not None:
        kept.setdefault("data", {})["path"] = _given(path, preset)
    text = complete(*(path_of(one).read_text(encoding="utf-8") for one in (DEFAULT, name)), kept)
    schema.parse(yaml.safe_load(text), str(schema.PARAMS_FILE))
    files.write_text(schema.PARAMS_FILE, text)
    return {f"{section}.{field}": value for section, own in kept.items() for field, value in own.items()}


def complete(default: str, overlay: str, own: dict[str, dict[str, Any]] | None = None) -> str:
    """The text of a parameter file: `default` with its comments, and the values of `overlay`, then `own`.

    It opens with the overlay's opening comment. Raises UserError where one of the texts is not YAML.
    """
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    try:
        values = _merge(_merge(editor.load(default), editor.load(overlay)), own or {})
    except YAMLError as error:
        raise UserError(f"{FOLDER}: not YAML: {' '.join(str(error).split())}") from error
    text = io.StringIO()
    if overlay != default:
        text.writelines(takewhile(lambda line: line.startswith("#"), overlay.splitlines(keepends=True)))
        text.write("#\n")
    editor.dump(values, text)
    return text.getvalue()


def _values(name: str) -> Any:
    return _merge(schema.read(path_of(DEFAULT)), schema.read(path_of(name)))


def _merge(values: Any, changes: Any) -> Any:
    """Put `changes` into `values`, section by section; a list is replaced as a whole."""
    if not isinstance(values, dict) or not isinstance(changes, dict):
        return changes
    for key, value in changes.items():
        values[key] = _merge(values.get(key), value)
    return values


def _given(path: Path, preset: schema.Params) -> str:
    """The user's folder or file, absolute: `dvc exp run --temp` works in another folder."""
    if preset.data.source not in READ_PATH:
        raise UserError(f"--path {path}: data.source {preset.data.source} does not read a folder of yours")
    whole = os.path.abspath(path.expanduser())
    if not os.path.exists(whole):
        raise UserError(f"--path {whole}: not found; name the folder of your captions file")
    return whole


def _own(preset_data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of OWN in params.yaml that no preset has, and of OWN_DATA if the source stays the same."""
    current, presets = schema.read(schema.PARAMS_FILE), [_values(name) for name in names()]
    own: dict[str, dict[str, Any]] = {}
    for section, fields in OWN.items():
        for field in fields:
            value = _at(current, section, field)
            if value not in (None, *(_at(values, section, field) for values in presets)):
                own.setdefault(section, {})[field] = value
    if _at(current, "data", "source") == preset_data["source"]:
        mine = {field: _at(current, "data", field) for field in OWN_DATA}
        own["data"] = {
            field: value for field, value in mine.items() if value not in (None, preset_data[field])
        }
    return own


def _at(values: Any, section: str, field: str) -> Any:
    found = values.get(section) if isinstance(values, dict) else None
    return found.get(field) if isinstance(found, dict) else None
