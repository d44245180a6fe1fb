"""dvc.yaml against the code: each stage declares its code, its parameters and the paths of goal.config."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from goal import config
from goal.cli import unchanged
from goal.config import Params, paths
from goal.evaluation.galleries import BENCHMARKS
from goal.runtime import code
from goal.training.plan import Plan
from tests.imports import ROOT

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES, ARTIFACTS = GRAPH["stages"], GRAPH["artifacts"]
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


@pytest.mark.parametrize("name", paths.TRAINED)
def test_a_training_declares_each_loss_weight_that_it_uses(name: str, monkeypatch) -> None:
    """A baseline that DVC does not train again when a shared weight changes would make an unfair table."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    section = name if name in ("stage1", "balanced") else "stage2"
    monkeypatch.chdir(ROOT)
    declared = set(unchanged.declared("train", name, values)["params"])
    before = Plan.of(config.parse(values, "test"), name).loss_weights
    for weight in values[section]["loss"]:
        changed = copy.deepcopy(values)
        changed[section]["loss"][weight] += 0.5
        used = Plan.of(config.parse(changed, "test"), name).loss_weights != before
        watched = bool(declared & {section, f"{section}.loss", f"{section}.loss.{weight}"})
        assert watched == used, weight


def test_a_stage_declares_every_parameter_it_reads() -> None:
    """Text of the form `params.<section>` in a stage's code must be declared in dvc.yaml."""
    # Tracking does not change results, so a change of it must make no stage stale.
    sections = {name.rstrip("_") for name in Params.model_fields} - {"tracking"}
    for stage in RUN:
        declared = {name.split(".")[0] for name in body(stage)["params"]}
        declared |= {"stage1", "stage2", "balanced"} if stage == "train" else set()
        # `register` reaches the code that names MLflow runs by their parameters; no result depends on it.
        declared |= (
            {"seed", "train", "model", "balanced", "mix", "evaluate"} if stage == "register" else set()
        )
        read: set[str] = set()
        for path in code.closure([ROOT / f"goal/stages/{stage}.py"]):
            text = path.read_text()
            # In other files, `params` is a single section, such as that of a region source.
            if re.search(r"\bParams\b", text):
                read |= {name.rstrip("_") for name in re.findall(r"\bparams\.([a-z_0-9]+)", text)}
        assert read & sections <= declared, stage


def test_every_stage_and_artifact_says_what_it_is() -> None:
    assert [stage for stage in STAGES if not body(stage).get("desc")] == []
    outs = {out for stage in STAGES for out in body(stage).get("outs", []) if isinstance(out, str)}
    outs |= {"models/${register.model}"}
    for name, artifact in ARTIFACTS.items():
        assert artifact["path"] in outs, name
        assert artifact["type"]
        assert artifact["desc"]


def test_another_project_gets_an_artifact_by_its_name(tmp_path: Path) -> None:
    """`dvc artifacts get` as dvc.yaml says it: an annotated tag of git names the version."""
    origin = tmp_path / "origin"
    text = (ROOT / "params.yaml").read_text()
    model = yaml.safe_load(text)["register"]["model"]

    def run(folder: Path, *command: str) -> None:
        words = [sys.executable, "-m", *command] if command[0] == "dvc" else command
        subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)

    (origin / "models" / model).mkdir(parents=True)
    (origin / "models" / model / "model.safetensors").write_bytes(b"weights")
    (origin / "params.yaml").write_text(text)
    run(origin, "git", "init", "--quiet")
    run(origin, "dvc", "init", "--quiet")
    run(origin, "dvc", "add", "--quiet", f"models/{model}")
    (origin / "dvc.yaml").write_text(yaml.safe_dump({"artifacts": ARTIFACTS}))
    run(origin, "git", "add", "--all")
    author = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    run(origin, "git", *author, "commit", "--quiet", "-m", "made")
    run(origin, "git", *author, "tag", "-a", "goal@v1.0.0", "-m", "first")
    run(tmp_path, "dvc", "artifacts", "get", str(origin), "goal")
    assert (tmp_path / model / "model.safetensors").read_bytes() == b"weights"
