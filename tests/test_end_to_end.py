"""The whole pipeline on a few scenes: from pictures to a fine-tuned model, a table and a version."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from goal import clip, weights
from goal.cli import main
from goal.config import paths
from goal.datasets import images
from goal.text import pad, tokenize
from tests import documents
from tests.imports import ROOT

SMALL = {
    "data.scenes": {"image_size": 96, "train": 48, "val": 8, "test": 16, "twins": 4, "objects": [3, 4]},
    "regions.workers": 1,
    "pairs.workers": 1,
    "pairs.contact_sheet": 2,
    "train.loader_workers": 0,
    "stage1.epochs": 1,
    "stage1.batch_size": 16,
    "stage1.warmup_steps": 1,
    "stage2.epochs": 1,
    "stage2.batch_size": 16,
    "stage2.warmup_steps": 1,
    "mix.alphas": [0.0, 1.0],
    "report.gallery": 2,
    "report.examples": 2,
}
VERBS = (
    ["data"],
    ["base"],
    ["regions"],
    ["pairs"],
    *(["train", name] for name in paths.TRAINED),
    ["mix"],
    ["evaluate"],
    ["report"],
    ["register"],
)


def project(folder: Path) -> Path:
    """A copy of the working tree with small parameters, committed to git."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("metrics/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    change(folder, SMALL)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "small")
    return folder


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", *who, *words], cwd=folder, check=True)


def change(folder: Path, values: dict) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for field, value in values.items():
        *path, last = field.split(".")
        section = params
        for part in path:
            section = section[part]
        assert last in section
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def dvc(folder: Path, *words: str) -> str:
    return shell(folder, shlex.join(["dvc", *words]))


def shell(folder: Path, command: str) -> str:
    """The output of a command run as after `. .venv/bin/activate`."""
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")
        },
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_verb_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runner = CliRunner()
    for words in VERBS:
        result = runner.invoke(main.app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)

    table = Path("reports/table.md").read_text()
    assert all(name in table for name in paths.MODELS)
    assert Path("pairs/contact-sheet.png").stat().st_size > 0

    # The registered model computes the same embeddings as the project.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model("models:/goal@challenger")
    picture, sentence = "data/scenes/images/test-00000.png", "A large red circle lies at the top."
    rows = pd.DataFrame({"text": [sentence, None], "image": [None, str(tmp_path / picture)]})
    answers = served.predict(rows)
    model = weights.load(paths.model_dir("mixed")).eval()
    view = clip.preprocess(model.spec)(images.open_image(Path(picture), 200.0))
    text = model.encode_texts(pad([tokenize(sentence, [], model.spec.context_length).ids]), normalize=True)
    image = model.encode_images(view[None], normalize=True)
    np.testing.assert_allclose(answers[0], text[0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(answers[1], image[0].detach().numpy(), atol=1e-5)

    # Registering the same model again makes no new version.
    assert runner.invoke(main.app, ["register"]).exit_code == 0
    versions = mlflow.MlflowClient().search_model_versions("name='goal'")
    assert len(versions) == 1


EXPERIMENTS = (
    "dvc exp run --name here base",
    "dvc exp run --temp --name there -S model.keep_positions=10 base",
    "dvc exp run --queue --name later -S model.keep_positions=12 base; dvc exp run --run-all",
)


@pytest.mark.parametrize(
    "command", [EXPERIMENTS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in EXPERIMENTS[1:])]
)
def test_an_experiment_in_a_fresh_clone_is_kept(command: str, tmp_path: Path) -> None:
    """dvc.lock has the digests of all results, the cache has none of them."""
    folder = project(tmp_path)
    report = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]["report"]
    outs = [
        {"path": path, "hash": "md5", "md5": "0" * 32 + ("" if Path(path).suffix else ".dir")}
        for path in report["outs"] + report.get("plots", [])
    ]
    lock = {"schema": "2.0", "stages": {"report": {"cmd": report["cmd"], "outs": outs}}}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "finished elsewhere")
    shell(folder, command)
    assert dvc(folder, "exp", "list", "--name-only").split() == [re.search("name ([a-z]+)", command)[1]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project after `dvc repro`, committed."""
    folder = project(tmp_path_factory.mktemp("finished"))
    dvc(folder, "repro")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "finished")
    return folder


@pytest.mark.slow
def test_dvc_runs_only_stale_stages(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "project")
    # DVC does not know the state of the registry, so this stage always runs and checks it itself.
    assert running(dvc(folder, "repro")) == {"code", "register"}

    # A dry run names the stages that depend on a changed parameter, not those that depend on these stages.
    change(folder, {"stage2.epochs": 2})
    stale = {f"train@{name}" for name in paths.TRAINED} - {"train@stage1"}
    assert running(dvc(folder, "repro", "--dry")) == stale | {"code", "register"}
    change(folder, {"stage2.epochs": 1})

    changed = dvc(folder, "exp", "run", "--name", "no-tsl", "-S", "stage2.loss.tsl_text=0")
    assert running(changed) == {"code", "train@stage2", "evaluate", "report", "register"}
    assert "no-tsl" in dvc(folder, "exp", "list", "--name-only")
    dvc(folder, "plots", "show")
    assert list((folder / "dvc_plots" / "static").glob("*loss.png"))
    shown = dvc(folder, "metrics", "show")
    assert all(name in shown for name in paths.MODELS)
    assert "metrics/stage2/" in dvc(folder, "metrics", "diff", "HEAD")


@pytest.mark.slow
def test_the_documented_sweep_is_queued_run_and_compared(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/experiments.md."""
    folder = shutil.copytree(finished, tmp_path / "project")
    for words in ("exp run --queue", "exp run --run-all"):
        (command,) = documents.commands("experiments.md", words, "$ ")
        shell(folder, command)
    (command,) = documents.commands("experiments.md", "exp show", "$ ")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shell(folder, command).splitlines()]
    head, _, start, *tries = [row for row in table if row]
    columns = [head.index(name) for name in ("stage2.lr", "stage2.loss.tsl_text")]
    values = {tuple(float(row[column]) for column in columns) for row in tries}
    assert values == {(lr, weight) for lr in (1e-4, 3e-4) for weight in (0, 1)}
    recalls = [row[head.index("metrics/stage2/val.json:text_to_image_r1")] for row in (start, *tries)]
    assert all(0 <= float(recall) <= 100 for recall in recalls)

    # The same experiments in MLflow, queried with the Python lines of the document.
    monkeypatch.chdir(folder)
    lines = documents.commands("experiments.md", "", ">>> ")
    names: dict[str, Any] = {}
    exec("\n".join(lines[:-1]), names)
    frame = eval(lines[-1], names)
    assert values <= {(float(row.iloc[0]), float(row.iloc[1])) for _, row in frame.iterrows()}
    assert frame["metrics.val/recall"].notna().all()


def running(output: str) -> set[str]:
    """The stages that DVC ran or would run, from its output."""
    return set(re.findall(r"Running stage '(.+?)'", output))
