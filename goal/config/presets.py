"""Presets: scenes.yaml is the whole default with its comments, the others hold only what differs from it."""

import io
import logging
import os
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from goal.config import schema
from goal.errors import UserError
from goal.runtime import files

log = logging.getLogger(__name__)

# Those of this package, and beside them what a project's own folder has: a file there takes precedence.
PACKAGED = Path(__file__).parents[1] / "assets" / "presets"
FOLDER = Path("presets")
DEFAULT = "scenes"
# What belongs to the user: `use` keeps a value that no preset has.
OWN = {"data": ("name", "path"), "register": ("name", "model"), "tracking": ("enabled", "experiment")}
# What else says where and what the user's data are: a preset for the same source keeps all of it.
OWN_DATA = (
    "name",
    "path",
    "images",
    "limit",
    "limit_order",
    "max_megapixels",
    "max_rejected",
    "digest",
    "folder",
    "download",
)
# Sources that read data.path. Elsewhere it names their code, and DVC would watch a folder for nothing.
READ_PATH = ("folder", "goal_lists")


def names() -> list[str]:
    """The presets of this package and of the project's folder presets/, sorted."""
    return sorted({path.stem for folder in (PACKAGED, FOLDER) for path in folder.glob("*.yaml")})


def path_of(name: str) -> Path:
    """The file of a preset.

    Raises UserError that lists the known names.
    """
    if name not in names():
        raise UserError(f"no preset {name!r}; there are: {', '.join(names())}")
    own = FOLDER / f"{name}.yaml"
    return own if own.exists() else PACKAGED / own.name


def load(name: str, own: Mapping[str, Any] | None = None) -> schema.Params:
    """All parameters of a preset, with `own` put in; raises UserError as `config.load` does.

    Also for an unknown name.
    """
    values = _merge(*(schema.read(path_of(one)) for one in (DEFAULT, name)))
    return schema.parse(_merge(values, own) if own else values, str(path_of(name)))


def use(name: str, path: Path | None = None, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write params.yaml from a preset, wholly or not at all; `path`: the user's data, for data.path.

    data: further values of `data` that say how the user's data are read. Returns what it kept of the user's
    settings: values by field, such as data.path. Raises UserError for a path that is not there, and for data
    that the preset does not read.
    """
    preset = load(name)
    texts = {one: path_of(one).read_text(encoding="utf-8") for one in names()}
    current = schema.read(schema.PARAMS_FILE) if schema.PARAMS_FILE.exists() else {}
    given = dict(data or {})
    if given and preset.data.source != "folder":
        raise UserError(f"{', '.join(given)}: data.source {preset.data.source} does not read data of yours")
    if path is not None:
        given["path"] = _given(path, preset)
    text, kept = applied(name, texts, current, Path.cwd(), given)
    files.write_text(schema.PARAMS_FILE, text)
    return kept


def applied(
    name: str,
    texts: Mapping[str, str],
    current: Any,
    home: Path,
    given: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """The text of params.yaml for a preset with what `current` has of the user's, and these values by field.

    texts: of all presets, by name; current: the values of params.yaml; home: the project's root, for a
    relative data.path; given: values that the user now gives in `data`. Raises UserError for texts that are
    no valid parameters.
    """
    presets = {one: _merge(_values(texts, DEFAULT), _values(texts, one)) for one in texts}
    kept = _own(current, [*presets.values()], home, presets[name]["data"])
    if given:
        _merge(kept.setdefault("data", {}), given)
    source = _at(presets[name], "data", "source")
    if source not in READ_PATH and "path" in kept.get("data", {}):
        log.warning(
            "not kept: data.path: %s: the source %s does not read it", kept["data"].pop("path"), source
        )
    text = complete(texts[DEFAULT], texts[name], kept)
    schema.parse(yaml.safe_load(text), str(schema.PARAMS_FILE))
    return absolute(text, home), {
        f"{section}.{field}": value for section, own in kept.items() for field, value in own.items()
    }


def absolute(text: str, home: Path) -> str:
    """A valid parameter file with every path of the user's, relative to `home`, made absolute.

    Flows and `dvc exp run --temp` run in a copy of the project, in which a relative path names nothing.
    """
    changes: dict[str, Any] = {}
    for field, path in relative(yaml.safe_load(text), home).items():
        *sections, last = field.split(".")
        place = changes
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = path
    return complete(text, text, changes) if changes else text


def relative(values: Any, home: Path) -> dict[str, str]:
    """The fields of valid parameters that name a file or folder relative to `home`, and its absolute path."""
    data, regions = values["data"], values["regions"]
    found = {
        "data.path": data["path"] if data["source"] in READ_PATH else "",
        "data.images": data["images"],
        "data.download.root": data["download"]["root"],
        "regions.sam.checkpoint": regions["sam"]["checkpoint"],
        "regions.detector.checkpoint": regions["detector"]["checkpoint"],
    }
    # These may also be names of weights, or a model of the pipeline, which a copy of the project has too.
    names = {"model.pretrained": values["model"]["pretrained"], "pairs.matcher": values["pairs"]["matcher"]}
    found |= {
        field: name
        for field, name in names.items()
        if Path(name).parts[0] != "models" and (home / name).exists()
    }
    return {
        field: os.path.abspath(home / path)
        for field, path in found.items()
        if path and not Path(path).is_absolute()
    }


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


def _values(texts: Mapping[str, str], name: str) -> Any:
    return schema.from_text(texts[name], str(FOLDER / f"{name}.yaml"))


def _merge(values: Any, changes: Any) -> Any:
    """Put `changes` into `values`, section by section; a list is replaced as a whole, unless it is equal."""
    if values == changes:
        return values  # which has comments and its style
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
        # Path makes one slash of two.
        address = "; an address is not read here: download it" if re.match(r"\w+:/", str(path)) else ""
        raise UserError(f"--path {whole}: not found{address}; name the folder of your data, or a file")
    return whole


def _own(
    current: Any, presets: list[Any], home: Path, preset_data: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The values of OWN in `current` that no preset has, and of OWN_DATA if the source stays the same."""
    own: dict[str, dict[str, Any]] = {}
    for section, fields in OWN.items():
        for field in fields:
            known = [None, *(_at(values, section, field) for values in presets)]
            if (section, field) == ("data", "path"):
                known += [os.path.abspath(home / path) for path in known if path]
            value = _at(current, section, field)
            if value not in known:
                own.setdefault(section, {})[field] = value
    if _at(current, "data", "source") == preset_data["source"]:
        mine = {field: _at(current, "data", field) for field in OWN_DATA}
        default = preset_data | {"path": os.path.abspath(home / preset_data["path"])}
        own["data"] = {
            field: value
            for field, value in mine.items()
            if value not in (None, preset_data[field], default[field])
        }
    return own


def _at(values: Any, section: str, field: str) -> Any:
    found = values.get(section) if isinstance(values, dict) else None
    return found.get(field) if isinstance(found, dict) else None
