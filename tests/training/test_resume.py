"""Trainings that are killed and started again end with the same bytes; after a signal, they save first.

A child process trains in a given folder; `die` names the call at which it kills itself.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goal import config
from goal.config import Params
from goal.errors import Interrupted
from goal.stages import train
from goal.training import checkpoint, finished, learner
from goal.training.progress import Silent
from tests import trainings


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project(without={1, 4})


def _child(folder: str, values: dict[str, Any], die: str, status: str) -> None:
    import torch

    # As in `goal train`. Children of a forkserver would start one of their own, which outlives a kill.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    os.chdir(folder)
    _kill_at(die)
    try:
        train.run(config.parse(values, "tests"), "stage2", Silent())
        Path(status).write_text("done")
    except Interrupted as error:
        Path(status).write_text(f"interrupted {error}")


def _kill_at(die: str) -> None:
    """Make this process kill itself with SIGKILL at the n-th call of a function; die: "<function>:<n>"."""
    place, _, count = die.partition(":")
    targets = {"update": (learner.Learner, "update"), "rename": (checkpoint.os, "rename")}
    targets |= {"sync": (checkpoint, "_sync"), "publish": (finished.weights, "publish")}
    targets |= {"clear": (checkpoint.Checkpoints, "clear")}
    if place not in targets:
        return
    owner, name = targets[place]
    real, left = getattr(owner, name), [int(count or 1)]

    def kill(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, name, kill)


def _start(params: Params, die: str = "") -> Any:
    values = params.model_dump(by_alias=True, mode="json")
    child = trainings.forks().Process(target=_child, args=(str(Path.cwd()), values, die, "status"))
    child.start()
    return child


def _finish(params: Params) -> dict[str, bytes]:
    child = _start(params)
    child.join(300)
    assert child.exitcode == 0
    assert Path("status").read_text() == "done"
    return trainings.outputs("stage2")


Uninterrupted = Callable[[Params], dict[str, bytes]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The outputs of an uninterrupted training; equal parameters are trained once for all tests."""
    known: dict[str, dict[str, bytes]] = {}

    def outputs(params: Params) -> dict[str, bytes]:
        key = params.model_dump_json()
        if key not in known:
            with contextlib.chdir(tmp_path_factory.mktemp("uninterrupted")):
                trainings.project(without={1, 4})
                known[key] = _finish(params)
        return known[key]

    return outputs


def often(**changes: Any) -> Params:
    """A training that saves after every step, with all that it must remember."""
    settings = {"stage2__epochs": 4, "stage2__neighbours": 1, "stage2__ema": 0.5, "stage2__short_share": 0.5}
    return trainings.params(train__checkpoint_minutes=1e-9, **settings | changes)


@pytest.mark.parametrize("die", ["update:6", "rename:3"])
def test_a_killed_training_ends_with_the_same_bytes(die: str, uninterrupted: Uninterrupted) -> None:
    child = _start(often(), die)
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    assert list(Path("work/train-stage2").glob("*/step-*"))
    assert _finish(often()) == uninterrupted(often())
    assert not list(Path("work/train-stage2").glob("*/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("die", ["update:1", "sync:2", "sync:4", "rename:1", "publish", "clear"])
def test_a_kill_at_every_critical_call_changes_nothing(die: str, uninterrupted: Uninterrupted) -> None:
    params = often(stage2__keep="best", train__loader_workers=1)
    child = _start(params, die)
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    assert _finish(params) == uninterrupted(params)


@pytest.mark.slow
def test_twenty_kills_at_random_points_give_the_same_bytes() -> None:
    params = often(train__loader_workers=1)
    began = time.monotonic()
    whole = _finish(params)
    lasted = time.monotonic() - began
    draw = random.Random(0)
    killed = 0
    while killed < 20:
        _remove_outputs()
        child = _start(params)
        child.join(draw.uniform(0.05, 0.95) * lasted)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            killed += 1
        assert _finish(params) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_after_a_signal_it_saves_and_the_same_command_resumes(
    number: signal.Signals, uninterrupted: Uninterrupted
) -> None:
    # Long enough for the signal to arrive before the end.
    params = trainings.params(stage2__epochs=120, stage2__validate_epochs=120)
    child = _start(params)
    while child.is_alive() and not list(Path("work/train-stage2").glob("*/lock")):
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid, number)
    child.join(300)
    assert Path("status").read_text().startswith("interrupted stage2: saved after step")
    assert len(list(Path("work/train-stage2").glob("*/step-*"))) == 1
    assert _finish(params) == uninterrupted(params)


def _remove_outputs() -> None:
    for name in trainings.OUTPUTS:
        Path(name.format("stage2")).unlink()


def test_other_parameters_do_not_resume_an_old_checkpoint() -> None:
    child = _start(often(), "update:6")
    child.join(300)
    other = often(stage2__lr=0.001)
    resumed = _finish(other)
    _remove_outputs()
    for folder in Path("work/train-stage2").iterdir():
        os.rename(folder, folder.with_name("aside"))
    assert _finish(other) == resumed
