"""What the record says of one training or evaluation: its inputs, parameters, code, data and machine."""

import getpass
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import yaml

from goal.config import Params, paths, presets
from goal.errors import UserError
from goal.runtime import code, files
from goal.tracking import provenance
from goal.tracking.journal import Record
from goal.tracking.recorder import EVALUATION, FAILED, FINISHED, KILLED, TRAINING

log = logging.getLogger("goal.tracking")

UNFINISHED = ["RUNNING", KILLED, FAILED]
ANY = [FINISHED, *UNFINISHED]
SHOWN_PACKAGES = ("torch", "torchvision", "open_clip_torch", "dvc")


def training(params: Params, name: str, place: str) -> Record:
    """The header of a training's run; its `key` is the digest of all that decides the result.

    place: names this project folder. The run is the unfinished one of this work here, else the finished one.
    """
    # It loads torch; a look at the registry goes without.
    from goal.training.plan import Plan

    plan = Plan.of(params, name)
    data = paths.data_dir(params.data.name)
    header = _header(params, name, TRAINING, provenance.fingerprint(plan.identity(params)))
    inputs = [data, plan.start, *([paths.pairs_dir("train").parent] if plan.local else [])]
    digests = {str(path): provenance.md5(path) for path in inputs}
    same = {"goal.work": header["key"], "goal.place": place}
    header["tags"] |= same | {"goal.deps": json.dumps(digests)}
    header["find"] = [{"tags": same, "statuses": UNFINISHED}, {"tags": same, "statuses": [FINISHED]}]
    header["data"]["digest"] = digests[str(data)]
    return header


def figures(name: str, folder: Path) -> list[Path]:
    """Pictures for a training's run: its loss curve, drawn into `folder`, and the pairs that taught it."""
    from goal.reporting import plots

    found = []
    curve = plots.read_curve(paths.metrics_dir(name) / paths.CURVE)
    if any(curve.values()):
        found.append(folder / "loss.png")
        plots.png(plots.loss_curves({name: curve}), found[0])
    sheet = paths.pairs_dir("train").parent / "contact-sheet.png"
    return [*found, *([sheet] if name != "stage1" and sheet.exists() else [])]


def evaluation(params: Params, name: str, place: str) -> Record:
    """The header of an evaluation: its run is the newest of this name and model, else one of its own."""
    model = files.digest(paths.weights_file(name))
    header = _header(params, name, EVALUATION, provenance.fingerprint([name, model]))
    same = {"goal.name": name, "goal.model": model}
    header["tags"] |= same | {"goal.place": place}
    header["find"] = [{"tags": same, "statuses": ANY}]
    header["data"]["digest"] = provenance.md5(Path(header["data"]["path"]))
    return header


def _header(params: Params, name: str, kind: str, key: str) -> Record:
    checkout = provenance.code()
    values = params.model_dump(by_alias=True, mode="json")
    packages = provenance.packages()
    return {
        "kind": kind,
        "key": key,
        "name": name,
        "experiment": params.tracking.experiment,
        "started": time.time_ns() // 1_000_000,
        "params": {key: _text(value) for key, value in provenance.flatten(values).items()},
        "data": {"name": params.data.name, "path": str(paths.data_dir(params.data.name))},
        "tags": {
            "goal.name": name,
            "goal.commit": checkout.commit,
            "goal.uncommitted": ", ".join(checkout.changed) or "none",
            "goal.code": code.digest(f"stages/{'train' if kind == TRAINING else 'evaluate'}"),
            "goal.command": f"goal {'train' if kind == TRAINING else 'evaluate'} {name}",
            "goal.user": user(),
            "goal.data": params.data.name,
            "goal.preset": preset(params),
            "goal.seed": str(params.seed),
            **{f"goal.machine.{key}": value for key, value in provenance.hardware().items()},
            **{f"goal.package.{key}": packages.get(key, "absent") for key in SHOWN_PACKAGES},
        },
        "texts": {
            "params.yaml": yaml.safe_dump(values, sort_keys=False),
            "packages.txt": "".join(f"{package}=={version}\n" for package, version in packages.items()),
        },
    }


def made(name: str) -> dict[str, provenance.Locked]:
    """The stages of dvc.lock that lead to a trained model and its metrics.

    Empty where dvc.lock knows another model than the one in the folder, or none (no `dvc repro`).
    """
    folder = paths.model_dir(name)
    try:
        stages = provenance.upstream(provenance.lock(), [folder, paths.metrics_dir(name)])
    except UserError as error:
        log.warning("tracking: %s", error)
        return {}
    locked = {md5 for stage in stages.values() for path, md5 in stage.outs.items() if Path(path) == folder}
    return stages if locked == {provenance.md5(folder)} else {}


def outcome(name: str) -> dict[str, str]:
    """What dvc.lock says of a model's training once that is in it, as tags."""
    folder = str(paths.model_dir(name))
    for stage in made(name).values():
        if folder in stage.outs:
            return {
                "goal.outs": json.dumps({folder: stage.outs[folder]}),
                "goal.deps": json.dumps(dict(stage.deps)),
            }
    return {}


def measurements(name: str) -> list[tuple[Path, str]]:
    """The files of a model's evaluations and the folders of the record that they belong to."""
    root = paths.metrics_dir(name)
    parts = ("", "details", "ranks")
    folders = [one / part for one in paths.numbers_folders(root).values() for part in parts]
    found = [path for folder in folders for path in sorted(folder.glob("[!.]*.*"))]
    return [(path, str(Path("evaluation") / path.parent.relative_to(root))) for path in found]


def report() -> list[tuple[Path, str]]:
    """The files of the report and the folders of the record that they belong to."""
    root = paths.reports_dir()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(path, str(Path("report") / path.parent.relative_to(root))) for path in files]


def preset(params: Params) -> str:
    """The preset that params.yaml equals, or `custom`."""
    for name in presets.names():
        try:
            if presets.load(name) == params:
                return name
        except UserError:
            continue
    return "custom"


def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without a name.
        return str(os.getuid())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
