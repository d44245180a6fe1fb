"""The code stage: lists what each other stage runs, so that DVC sees when it changes."""

import json
from pathlib import Path

from goal.config import Params, paths
from goal.model import sources
from goal.runtime import code, files

FOLDER = Path("code")


def run(params: Params) -> None:
    """Write code/<stage>, its `listing`, for every other stage."""
    for stage in code.stages():
        if stage != Path(__file__).stem:
            files.write_text(FOLDER / stage, listing(params, stage))


def listing(params: Params, stage: str) -> str:
    """What a stage can run, as goal.runtime.code lists it, and the digests of weights that parameters name.

    DVC watches such a parameter, but not the files, configurations included; each is a line,
    `<parameter>: <file> <sha256>`.
    """
    named = [(name, file) for name, path in _weights(params, stage) for file in sources.parts(Path(path))]
    return code.listing(f"stages/{stage}") + "".join(
        f"{name}: {file.name} {_digest(file)}\n" for name, file in named
    )


def _weights(params: Params, stage: str) -> list[tuple[str, str]]:
    """The parameters by which a stage may name weights, and their values."""
    networks = {"sam": params.regions.sam, "detector": params.regions.detector}
    named = {
        "base": [("model.pretrained", params.model.pretrained)],
        "pairs": [("pairs.matcher", params.pairs.matcher)],
        "regions": [
            (f"regions.{name}.checkpoint", network.checkpoint)
            for name, network in networks.items()
            if name in params.regions.sources and network.checkpoint
        ],
    }
    return named.get(stage, [])


def _digest(file: Path) -> str:
    """sha256 of a file; that of an unchanged one, which may have gigabytes, is remembered."""
    now, memory = file.stat(), paths.work_dir("weights") / "digests.json"
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else {}
    state = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    found = known.get(str(file.resolve()), {})
    if found.get("state") != state:
        found = known[str(file.resolve())] = {"state": state, "sha256": files.digest(file)}
        files.write_json(known, memory)
    return found["sha256"]
