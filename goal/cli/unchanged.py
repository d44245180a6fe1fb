"""A stage fails if its parameters, code or inputs change while it runs.

dvc.lock records all three as they are after a stage (treeverse/dvc#11058), so that an edit during a training
would pass for what trained the model.
"""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from goal import config
from goal.config import paths, schema
from goal.errors import UserError
from goal.stages import code

DVC_FILE = Path("dvc.yaml")
SHOWN = 3
# Other files are pictures: `data` may read millions of them, and no later stage could tell them from others.
TABLES = (".csv", ".json", ".jsonl", ".parquet", ".safetensors", ".tsv", ".txt", ".pt", ".pth", ".bin")
TABLES += (".arrow", ".gz", ".tar", ".xlsx")


class Unchanged:
    """What a stage of dvc.yaml depends on, as it is when this object is made, before the stage runs.

    params: params.yaml, for the stage. Raises UserError for a fault in it, and in a stage that DVC runs where
    code/<stage>, which its dvc.lock will record, lists other code than there is.
    """

    def __init__(self, stage: str, key: str = "") -> None:
        self.params = config.load()
        self._stage, self._name = stage, f"{stage}@{key}" if key else stage
        self._declared = declared(stage, key, self._values())
        self._before = self._now()
        self._outs = {out: _signature(out) for out in self._declared["outs"]}
        listed = code.FOLDER / stage
        if "DVC_STAGE" in os.environ and str(listed) in self._declared["deps"]:
            others = _differing(_lines(listed.read_text(encoding="utf-8")), self._code())
            if others:
                raise UserError(
                    f"{self._name}: {listed} lists another {others}; `dvc repro` lists the code anew"
                )

    def check(self) -> None:
        """Raise UserError, and put what the stage wrote aside, if something changed since."""
        try:
            self.params = config.load()
            now = self._now()
        except UserError as error:
            now = {**self._before, str(config.PARAMS_FILE): str(error)}
        changed = _differing(self._before, now)
        if changed:
            raise UserError(
                f"{self._name}: changed while it ran: {changed}; its result does not count and is in "
                f"{self._put_aside()}: run it again"
            )

    def _values(self) -> dict[str, Any]:
        return self.params.model_dump(by_alias=True, mode="json")

    def _now(self) -> dict[str, Any]:
        values = self._values()
        found = {f"{config.PARAMS_FILE}: {name}": _value(values, name) for name in self._declared["params"]}
        inputs = (dep for dep in self._declared["deps"] if Path(dep).parts[0] != str(code.FOLDER))
        found |= {dep: _signature(dep) for dep in inputs}
        return found | self._code()

    def _code(self) -> dict[str, str]:
        return _lines(code.listing(self.params, self._stage))

    def _put_aside(self) -> Path:
        """Move what the stage wrote out of the way of DVC and of later stages."""
        folder = paths.work_dir("aside") / self._name
        shutil.rmtree(folder, ignore_errors=True)
        for out, before in self._outs.items():
            if _signature(out) not in (before, []):
                (folder / out).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(out, folder / out)
        return folder


def _lines(listing: str) -> dict[str, str]:
    """The digests and versions of a listing by file and package."""
    return dict(line.rsplit(" ", 1) for line in listing.splitlines())


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The names whose values differ, the first few of them."""
    found = [name for name in before | now if before.get(name) != now.get(name)]
    return ", ".join(found[:SHOWN]) + (" ..." if len(found) > SHOWN else "")


def declared(stage: str, key: str, values: dict[str, Any]) -> dict[str, list[str]]:
    """The params, deps and outs (metrics and plots too) of a stage of dvc.yaml, its templates filled in."""
    entry = schema.read(DVC_FILE)["stages"][stage] if DVC_FILE.exists() else {}
    if "foreach" in entry:
        values = values | {"key": key, "item": entry["foreach"].get(key)}
        entry = entry["do"]

    def filled(part: str) -> Iterable[str]:
        for one in entry.get(part, []):
            text = one if isinstance(one, str) else next(iter(one))
            yield re.sub(r"\$\{(.+?)\}", lambda found: str(_value(values, found[1])), text)

    outs = [name for part in ("outs", "metrics", "plots") for name in filled(part)]
    return {"params": list(filled("params")), "deps": list(filled("deps")), "outs": outs}


def _value(values: Any, name: str) -> Any:
    """The value at a path such as `stage2.loss` or `item.reads[0]`; None where there is none."""
    for part in re.findall(r"[^.\[\]]+", name):
        if isinstance(values, list):
            values = values[int(part)]
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values


def _signature(path: str) -> list[tuple[str, int, int, int]]:
    """Name, size, time and inode of a file, or of each table and weights file in a folder."""
    walked = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    files = [path] if os.path.isfile(path) else sorted(one for one in walked if one.lower().endswith(TABLES))
    found = []
    for file in files:
        with suppress(FileNotFoundError):
            state = os.stat(file)
            found.append((file, state.st_size, state.st_mtime_ns, state.st_ino))
    return found
