"""Training as a DVC stage, with real DVC: killed, started again, edited meanwhile, committed from outside."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from goal.stages import code, train
from goal.training.progress import Silent
from tests import trainings
from tests.imports import ROOT

STAGE = "train@stage2"
REPRO = ("-m", "dvc", "--wait-for-lock", "repro", "--single-item", STAGE)
# Saved after each of 16 steps.
PARAMS = trainings.params(train__checkpoint_minutes=1e-9, stage2__epochs=8)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's own dvc.yaml and code, with the tiny data, pairs and weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    trainings.project(without={1, 4})
    shutil.copytree(ROOT / "goal", "goal", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(by_alias=True, mode="json")))
    code.run(PARAMS)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n")
    return tmp_path


@pytest.fixture
def expected(project: Path) -> dict[str, bytes]:
    """The outputs of an uninterrupted training."""
    child = trainings.forks().Process(target=_train, args=(str(project),))
    child.start()
    child.join(300)
    assert child.exitcode == 0
    found = trainings.outputs("stage2")
    for path in trainings.OUTPUTS:
        Path(path.format("stage2")).unlink()
    return found


def _train(folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    # The identity of a run contains a digest of its code; the copy has the same.
    train.run(PARAMS, "stage2", Silent())


def start(*words: str) -> subprocess.Popen:
    """Start `python <words>` in the project, in its own process group."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": tools, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*words: str) -> str:
    process = start(*words)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen, step: int, victim: str) -> None:
    """Kill -9 once the training has saved `step`; returns when all its processes have ended."""
    while trainings.last_saved() < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        family[0 if victim == "dvc" else -1].kill()
    process.communicate(timeout=120)
    # A trainer whose DVC was killed gets a signal, saves and ends.
    _, left = psutil.wait_procs(family[1:], timeout=120)
    assert not left


def test_a_killed_stage_started_again_ends_with_the_same_bytes(expected: dict[str, bytes]) -> None:
    kill(start(*REPRO), 3, "all")
    finish(*REPRO)
    assert trainings.outputs("stage2") == expected
    assert "didn't change, skipping" in finish(*REPRO)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stage_killed_at_random_points_ends_with_the_same_bytes(expected: dict[str, bytes]) -> None:
    draw = random.Random(0)
    for victim in ("all", "dvc", "trainer") * 2:
        step = 0
        for _ in range(draw.randint(1, 2)):
            step = draw.randint(step + 1, step + 6)
            kill(start(*REPRO, "--force"), step, victim)
        finish(*REPRO, "--force")
        assert trainings.outputs("stage2") == expected


def test_dvc_commits_a_model_that_was_trained_outside(expected: dict[str, bytes]) -> None:
    finish("-m", "goal", "train", "stage2")
    finish("-m", "dvc", "commit", "--force", STAGE)
    assert "didn't change, skipping" in finish(*REPRO)
    assert trainings.outputs("stage2") == expected


def _edit_params(section: str, field: str, value: object) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values[section][field] = value
    Path("params.yaml").write_text(yaml.safe_dump(values))


def _edit_code() -> None:
    with Path("goal/losses.py").open("a") as file:
        file.write("EDITED = True\n")


def _replace_pairs() -> None:
    shard = next(Path("pairs/train").glob("*.parquet"))
    shutil.copy(shard, "copy")
    os.replace("copy", shard)


def _repro_disturbed_by(edit: Callable[[], None]) -> tuple[int, str]:
    """The exit code and output of a stage that has saved a step when `edit` is called."""
    process = start(*REPRO)
    while trainings.last_saved() < 1:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    edit()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (partial(_edit_params, "stage2", "lr", 0.001), "params.yaml: stage2.lr"),
        (partial(_edit_params, "stage2", "lr", "fast"), "params.yaml"),
        (_edit_code, "goal/losses.py"),
        (_replace_pairs, "pairs"),
    ],
    ids=["parameter", "unreadable", "code", "input"],
)
def test_a_stage_whose_inputs_changed_while_it_ran_fails(
    project: Path, edit: Callable[[], None], named: str
) -> None:
    """dvc.lock would record the new ones as those that made the model."""
    code, output = _repro_disturbed_by(edit)
    assert code != 0
    assert f"goal: {STAGE}: changed while it ran: {named}; its result does not count and is in" in output
    assert not Path("dvc.lock").exists()
    for path in trainings.OUTPUTS:
        assert not Path(path.format("stage2")).exists()
        assert Path("work/aside", STAGE, path.format("stage2")).exists()


def test_an_edit_of_a_parameter_that_the_stage_does_not_read_changes_nothing(project: Path) -> None:
    code, output = _repro_disturbed_by(partial(_edit_params, "report", "gallery", 1))
    assert code == 0, output
    assert "didn't change, skipping" in finish(*REPRO)


def test_a_stage_does_not_start_with_other_code_than_dvc_would_record(project: Path) -> None:
    _edit_code()
    process = start(*REPRO)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert (
        f"goal: {STAGE}: code/train lists another goal/losses.py; `dvc repro` lists the code anew" in output
    )
    assert trainings.last_saved() == -1
