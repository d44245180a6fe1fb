"""dvc.yaml against the code: each stage declares its code, its parameters and the paths of goal.config."""

import re

import pytest
import yaml

from goal.config import Params, paths
from goal.evaluation.galleries import BENCHMARKS
from goal.runtime import code
from tests.imports import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
RUN = [stage for stage in code.stages() if stage != "code"]


def body(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


@pytest.mark.parametrize("stage", RUN)
def test_each_stage_depends_on_the_listing_of_its_code(stage: str) -> None:
    assert body(stage)["deps"][0] == f"code/{stage}"


def test_every_stage_runs_its_own_command() -> None:
    assert sorted(STAGES) == code.stages()
    for stage in STAGES:
        assert re.fullmatch(rf"python -m goal {stage}( \$\{{key\}})?", body(stage)["cmd"])


def test_the_models_are_those_of_goal_config_paths() -> None:
    assert tuple(STAGES["train"]["foreach"]) == paths.TRAINED
    folders = {str(paths.model_dir(name)) for name in paths.MODELS}
    assert {path for path in STAGES["evaluate"]["deps"] if path.startswith("models/")} == folders
    assert {path for path in STAGES["report"]["deps"] if path.startswith("models/")} == folders


def test_the_evaluation_declares_every_file_that_it_writes() -> None:
    metrics = {path for entry in STAGES["evaluate"]["metrics"] for path in entry}
    assert metrics == {
        str(paths.metrics_dir(name) / f"{one}.json") for name in paths.MODELS for one in BENCHMARKS
    }
    folders = {str(paths.metrics_dir(name) / one) for name in paths.MODELS for one in ("details", "ranks")}
    assert set(STAGES["evaluate"]["outs"]) == folders


def test_only_register_has_an_uncached_out() -> None:
    """DVC's run cache stores no run of a stage with an uncached out, so the stage would run again."""
    uncached = {
        stage
        for stage in STAGES
        for out in body(stage).get("outs", [])
        if isinstance(out, dict) and any(not settings.get("cache", True) for settings in out.values())
    }
    # Another registry may lack the version, so `register` must run again there.
    assert uncached == {"register"}


def test_a_stage_declares_every_parameter_it_reads() -> None:
    """Text of the form `params.<section>` in a stage's code must be declared in dvc.yaml."""
    # Tracking does not change results, so a change of it must make no stage stale.
    sections = {name.rstrip("_") for name in Params.model_fields} - {"tracking"}
    for stage in RUN:
        declared = {name.split(".")[0] for name in body(stage)["params"]}
        declared |= {"stage1", "stage2"} if stage == "train" else set()
        # `register` reaches the code that names MLflow runs by their parameters; no result depends on it.
        declared |= {"seed", "train", "model"} if stage == "register" else set()
        read: set[str] = set()
        for path in code.closure([ROOT / f"goal/stages/{stage}.py"]):
            text = path.read_text()
            # In other files, `params` is a single section, such as that of a region source.
            if re.search(r"\bParams\b", text):
                read |= {name.rstrip("_") for name in re.findall(r"\bparams\.([a-z_0-9]+)", text)}
        assert read & sections <= declared, stage
