"""dvc.yaml tells the truth: its dependencies are the code each stage runs, its paths those of goal.config."""

import re
from pathlib import Path

import pytest
import yaml

from goal.config import Params, paths
from tests.imports import ROOT, closure, files

# What a stage's verb runs (goal/cli is a thin dispatcher, and wires the record around a stage).
ENTRY = {
    "data": "datasets/stage",
    "base": "base",
    "regions": "regions/stage",
    "pairs": "pairs",
    "train": "train",
    "evaluate": "evaluate",
    "report": "report",
    "register": "registry",
}
# config.py acts through the values alone, which every stage declares as params; cli.py only calls the stage.
NOT_CODE = frozenset({ROOT / "goal/config.py", ROOT / "goal/cli.py"})
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def body(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


@pytest.mark.parametrize("stage", sorted(ENTRY))
def test_deps_name_the_code_that_runs(stage: str) -> None:
    declared = {dep for dep in body(stage)["deps"] if re.fullmatch(r"goal/[a-z_0-9/]+(\.py)?", dep)}
    used = closure([ROOT / f"goal/{ENTRY[stage]}.py"], NOT_CODE)
    assert sorted(declared) == sorted({whole(path, used) for path in used})


def whole(path: Path, used: set[Path]) -> str:
    """The file, or its package where the stage uses all of it."""
    package = path.parent
    all_of_it = package != ROOT / "goal" and set(package.rglob("*.py")) <= used
    return str((package if all_of_it else path).relative_to(ROOT))


def test_every_stage_is_a_verb_of_the_command_line() -> None:
    assert set(STAGES) == set(ENTRY)
    for stage in ENTRY:
        assert re.fullmatch(rf"python -m goal {stage}( \$\{{key\}})?", body(stage)["cmd"])


def test_models_are_those_of_the_layout() -> None:
    assert tuple(STAGES["train"]["foreach"]) == paths.TRAINED
    assert tuple(STAGES["evaluate"]["foreach"]) == paths.MODELS
    for name, folder in STAGES["evaluate"]["foreach"].items():
        assert str(paths.model_dir(name)) == f"models/{folder}"


def test_an_earlier_result_is_taken_from_the_cache() -> None:
    """DVC's run cache keeps no run of a stage with a plain out that is not cached: it would train again."""
    uncached = {
        stage
        for stage in STAGES
        for out in body(stage).get("outs", [])
        if isinstance(out, dict) and any(not settings.get("cache", True) for settings in out.values())
    }
    # What is registered, another registry need not know.
    assert uncached == {"register"}


def test_a_stage_sees_every_parameter_it_reads() -> None:
    """Text of the form `params.<section>` in a stage's code must be declared in dvc.yaml."""
    # Tracking changes no result, and a change of it must make no stage stale.
    sections = {name.rstrip("_") for name in Params.model_fields} - {"tracking"}
    for stage in ENTRY:
        declared = {name.split(".")[0] for name in body(stage)["params"]}
        declared |= {"stage1", "stage2"} if stage == "train" else set()
        # The record, which `register` reaches, names runs by their recipe; no result hangs on it.
        declared |= {"seed", "train", "model"} if stage == "register" else set()
        read: set[str] = set()
        for path in closure([ROOT / f"goal/{ENTRY[stage]}.py"], NOT_CODE):
            text = path.read_text()
            # Elsewhere `params` is one section, such as that of a region source.
            if re.search(r"\bParams\b", text):
                read |= {name.rstrip("_") for name in re.findall(r"\bparams\.([a-z_0-9]+)", text)}
        assert read & sections <= declared, stage


def test_imports_of_a_stage_are_found_also_inside_functions() -> None:
    assert ROOT / "goal/train.py" in files(ROOT / "goal/cli.py")
