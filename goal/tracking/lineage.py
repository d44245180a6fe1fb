"""What the record says of one training or evaluation: its inputs, parameters, code, data and machine."""

import getpass
import json
import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from goal.config import Params, paths, presets
from goal.datasets import manifest
from goal.errors import UserError
from goal.runtime import code, files
from goal.tracking import mlflow_store, provenance
from goal.tracking.records import FINISHED, Run, now

log = logging.getLogger("goal.tracking")

SHOWN_PACKAGES = ("torch", "torchvision", "open_clip_torch", "dvc")
# The environment of a stage that a flow runs; a run or a version keeps the first flow that made it.
OF_FLOW = {"goal.branch": "GOAL_BRANCH", "goal.flow_run": "GOAL_FLOW_RUN"}


def training(params: Params, name: str) -> Run:
    """The record of a training that begins; its `work` names all that decides the result."""
    # They load torch; a look at the registry goes without.
    from goal.training import mixture
    from goal.training.plan import Plan

    data = paths.data_dir(params.data.name)
    if name == paths.MIXED:
        verb, inputs, identity = "mix", [data, *mixture.folders(params)], mixture.identity(params)
    else:
        plan = Plan.of(params, name)
        inputs = [data, plan.start, *([paths.pairs_dir("train").parent] if plan.local else [])]
        verb, identity = "train", plan.identity(params)
    digests = {str(path): provenance.md5(path) for path in inputs}
    run = _run(params, name, verb, data_set(params.data.name, "train", digests[str(data)]))
    run["work"] = f"{verb}-{name}-{provenance.fingerprint(identity)[:16]}"
    run["tags"] |= {"goal.work": run["work"], "goal.deps": json.dumps(digests)}
    return run


def evaluation(params: Params, name: str, numbers: Mapping[str, float], on: str = "") -> Run:
    """The record of an evaluation: on the newest run of this name and model, else on one of its own.

    on: another data set than the pipeline's own.
    """
    data = on or params.data.name
    run = _run(params, name, "evaluate", data_set(data, "test", provenance.md5(paths.data_dir(data))))
    run["find"] = {"goal.name": name, "goal.model": files.digest(paths.weights_file(name))}
    run["tags"] |= run["find"]
    run |= {"status": FINISHED, "ended": run["started"]}
    # On the training's run, whose own tags say what code trained.
    own = {f"goal.evaluation.{key}": run["tags"][f"goal.{key}"] for key in ("code", "commit", "uncommitted")}
    return run | {"numbers": dict(numbers), "final_tags": outcome(name) | own}


def data_set(name: str, split: str, digest: str) -> dict[str, Any]:
    """What a run says of its data: where it lies, DVC's md5, columns and numbers of a split's manifest."""
    folder, file = paths.home() / paths.data_dir(name), paths.manifest(name, split)
    columns, counts = {}, {}
    # A run without data that can be read fails by itself.
    with suppress(UserError), manifest.opened(file) as found:
        columns = {one.name: str(one.type) for one in found.schema_arrow}
        counts = {"num_rows": found.metadata.num_rows}
    return {
        "name": name if split == "train" else f"{name}/{split}",
        "path": str(folder),
        "digest": digest,
        "columns": columns,
        "counts": counts,
    }


def _run(params: Params, name: str, verb: str, data: dict[str, Any]) -> Run:
    values = params.model_dump(by_alias=True, mode="json")
    checkout, packages, number = provenance.code(), provenance.packages(), uuid.uuid4().hex
    command, chosen = "goal mix" if verb == "mix" else f"goal {verb} {name}", preset(params)
    return {
        "id": number,
        "work": f"{verb}-{name}",
        "find": {"goal.run": number},
        "name": name,
        "kind": {"train": "training", "mix": "mixture", "evaluate": "evaluation"}[verb],
        "experiment": params.tracking.experiment,
        "started": now(),
        "status": None,
        "sent": False,
        "sent_bytes": 0,
        "numbers": {},
        "params": {key: _text(value) for key, value in provenance.flatten(values).items()},
        "data": data,
        "tags": {
            "goal.run": number,
            "goal.name": name,
            "goal.commit": checkout.commit,
            "goal.uncommitted": checkout.uncommitted,
            "goal.code": code.digest(f"stages/{verb}"),
            "goal.command": command,
            "goal.user": user(),
            "goal.data": params.data.name,
            "goal.preset": chosen,
            "goal.seed": str(params.seed),
            **flow(),
            **{f"goal.machine.{key}": value for key, value in provenance.hardware().items()},
            **{f"goal.package.{key}": packages.get(key, "absent") for key in SHOWN_PACKAGES},
            # MLflow's pages show these in columns of their own.
            "mlflow.source.git.commit": checkout.commit,
            "mlflow.source.name": command,
            "mlflow.user": user(),
            mlflow_store.NOTE: f"`{command}`, preset `{chosen}`, data set `{data['name']}`, "
            f"commit `{checkout.commit}` (uncommitted: {checkout.uncommitted})",
        },
        "texts": {
            "params.yaml": yaml.safe_dump(values, sort_keys=False),
            "packages.txt": "".join(f"{package}=={version}\n" for package, version in packages.items()),
        },
    }


def results(name: str, folder: Path) -> list[tuple[Path, str]]:
    """The files of a finished training and the folders of the record that they belong to.

    Its loss curve is drawn into `folder`; the contact sheet shows the pairs that it learned from.
    """
    from goal.reporting import plots

    numbers = paths.metrics_dir(name)
    names = (paths.NUMBERS, paths.VALIDATION, paths.CURVE, paths.MIX, paths.MIX_CURVE)
    found = [(numbers / name, "") for name in names if (numbers / name).exists()]
    curve = plots.read_curve(numbers / paths.CURVE) if (numbers / paths.CURVE).exists() else {}
    if any(curve.values()):
        plots.png(plots.loss_curves({name: curve}), folder / "loss.png")
        found.append((folder / "loss.png", "figures"))
    sheet = paths.pairs_dir("train").parent / "contact-sheet.png"
    return [*found, *([(sheet, "figures")] if name != "stage1" and sheet.exists() else [])]


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


def flow() -> dict[str, str]:
    """The branch and the run of the flow that this stage belongs to; empty outside a flow."""
    return {tag: os.environ[name] for tag, name in OF_FLOW.items() if name in os.environ}


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
