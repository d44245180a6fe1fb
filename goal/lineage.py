"""What the record says of one training or evaluation: its inputs, parameters, code, data and machine."""

import getpass
import json
import time
from pathlib import Path
from typing import Any

import yaml

from goal import config, layout, presets, provenance
from goal.config import Params
from goal.errors import UserError
from goal.journal import Record
from goal.recorder import EVALUATION, FAILED, FINISHED, KILLED, TRAINING

WEIGHTS = "model.safetensors"
UNFINISHED = ["RUNNING", KILLED, FAILED]
ANY = [FINISHED, *UNFINISHED]
SHOWN_PACKAGES = ("torch", "torchvision", "open_clip_torch", "dvc")
# The parameters that decide the weights, apart from the stage's own section; what only changes the pace
# (log_every, loader_workers ...) may change between a kill and the resumed run.
DECISIVE = ("device", "precision", "processes", "compile", "checkpoint_activations", "chunk_size")


def inputs(params: Params, name: str) -> list[Path]:
    """What the training of `name` reads: data, first weights, pairs."""
    data = layout.data_dir(params.data.name)
    if name == "stage1":
        return [data, layout.model_dir("zero-shot")]
    return [data, layout.model_dir("stage1"), Path("pairs")]


def training(params: Params, name: str, place: str) -> Record:
    """The header of a training's run; its `key` is the digest of all that decides its result, but the code.

    place: names this project folder. The run is the unfinished one of the same work here, else the finished
    one of the same work and code here.
    """
    digests = {str(path): provenance.md5(path) for path in inputs(params, name)}
    section = params.stage1 if name == "stage1" else params.stage2
    decisive = {
        "name": name,
        "seed": params.seed,
        "train": {key: getattr(params.train, key) for key in DECISIVE},
        "stage": section.model_dump(by_alias=True),
        "inputs": digests,
    }
    header = _header(params, name, TRAINING, provenance.fingerprint(decisive))
    same = {"goal.work": header["key"], "goal.place": place}
    header["tags"] |= same | {"goal.deps": json.dumps(digests)}
    header["find"] = [
        {"tags": same, "statuses": UNFINISHED},
        {"tags": same | {"goal.code": header["tags"]["goal.code"]}, "statuses": [FINISHED]},
    ]
    header["data"]["digest"] = digests[header["data"]["path"]]
    return header


def evaluation(params: Params, name: str, place: str) -> Record:
    """The header of an evaluation: its run is the newest of this name and model, else one of its own."""
    model = provenance.sha256(layout.model_dir(name) / WEIGHTS)
    header = _header(params, name, EVALUATION, provenance.fingerprint([name, model]))
    same = {"goal.name": name, "goal.model": model}
    header["tags"] |= same | {"goal.place": place}
    header["find"] = [{"tags": same, "statuses": ANY}]
    header["data"]["digest"] = provenance.md5(Path(header["data"]["path"]))
    return header


def _header(params: Params, name: str, kind: str, key: str) -> Record:
    code = provenance.code()
    values = params.model_dump(by_alias=True, mode="json")
    packages = provenance.packages()
    return {
        "kind": kind,
        "key": key,
        "name": name,
        "experiment": params.tracking.experiment,
        "started": time.time_ns() // 1_000_000,
        "params": {key: _text(value) for key, value in provenance.flatten(values).items()},
        "data": {"name": params.data.name, "path": str(layout.data_dir(params.data.name))},
        "tags": {
            "goal.name": name,
            "goal.commit": code.commit,
            "goal.uncommitted": ", ".join(code.changed) or "none",
            "goal.code": code_digest(),
            "goal.command": f"goal {'train' if kind == TRAINING else 'evaluate'} {name}",
            "goal.user": getpass.getuser(),
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
    folder = layout.model_dir(name)
    stages = provenance.upstream(provenance.lock(), [folder, layout.metrics_dir(name)])
    locked = {md5 for stage in stages.values() for path, md5 in stage.outs.items() if Path(path) == folder}
    return stages if locked == {provenance.md5(folder)} else {}


def outcome(name: str) -> dict[str, str]:
    """What dvc.lock says of a model's training once that is in it, as tags."""
    folder = str(layout.model_dir(name))
    for stage in made(name).values():
        if folder in stage.outs:
            return {
                "goal.outs": json.dumps({folder: stage.outs[folder]}),
                "goal.deps": json.dumps(dict(stage.deps)),
            }
    return {}


def preset(params: Params) -> str:
    """The preset that params.yaml equals, or `custom`."""
    for name in presets.names():
        try:
            if config.load(presets.path_of(name)) == params:
                return name
        except UserError:
            continue
    return "custom"


def code_digest() -> str:
    """One digest of all of this package's code."""
    root = Path(__file__).parent
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.py"))
    return provenance.fingerprint({name: provenance.sha256(root / name) for name in files})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
