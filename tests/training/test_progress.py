"""The progress of a training: a bar on a terminal, log lines elsewhere, time left, time waiting for data."""

import itertools
import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from goal.stages import train
from goal.training import progress, trainer
from goal.training.examples import Examples
from goal.training.progress import Progress
from tests import trainings
from tests.imports import ROOT
from tests.stages.test_train import Recorder


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project()


def test_a_terminal_shows_a_bar_with_losses_speed_and_time_left() -> None:
    params = trainings.params(train__log_every=1).model_dump(by_alias=True, mode="json")
    Path("params.yaml").write_text(yaml.safe_dump(params))
    terminal, end = pty.openpty()
    # Wide enough for the whole line.
    termios.tcsetwinsize(end, (50, 300))
    child = subprocess.Popen(
        [sys.executable, "-m", "goal", "train", "stage2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=end,
        stderr=end,
    )
    os.close(end)
    shown = b"".join(iter(lambda: _read(terminal), b"")).decode()
    os.close(terminal)
    assert child.wait(60) == 0, shown
    bars = re.findall(r"stage2: +(\d+)%\|.*?\| (\d)/4 \[\d\d:\d\d<(\S+),(.*?)\]", shown)
    assert bars[-1][:3] == ("100", "4", "00:00")
    assert re.search(r"global \d\.\d+ .*tsl_text \d.* total \d.*, \d+\.\d samples/s, data \d+%", bars[-1][3])
    # There are no log lines where there is a bar.
    assert "s left" not in shown


def test_a_log_is_not_filled_with_bars() -> None:
    values = yaml.safe_load((ROOT / "presets" / "scenes.yaml").read_text())
    values["data"]["scenes"] |= {"image_size": 128, "train": 400, "val": 1, "test": 1, "twins": 0}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-m", "goal", "data"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    bars = [line for line in re.split(r"[\r\n]+", done.stderr) if line.startswith("scenes:")]
    assert "100%" in bars[-1]
    assert len(bars) <= 4


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        # Linux raises EIO when the other end is closed.
        return b""


def test_without_a_terminal_log_lines_show_the_time_left(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed at step 50, 20 steps took 40 s: the remaining 30 take 60 s."""
    clock = itertools.count(0, 20.0)
    now = [next(clock)]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO")
    with Progress("stage2", 50, 100, 8, shown=True) as shown:
        now[0] = next(clock)
        shown.waited(5.0)
        speed = shown.speed(60)
        shown.show(60, {"total": 1.25}, speed)
        assert not caplog.text
        now[0] = next(clock)
        shown.show(70, {"total": 1.25}, speed)
    assert speed == {"samples_per_second": 4.0, "waiting_for_data": 0.25}
    assert "stage2: step 70 of 100: total 1.2500, 4.0 samples/s, data 25%, 60 s left" in caplog.text


def _share(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> float:
    """The share of time waiting for data that a training logs while the function `name` is slowed down."""
    real: Callable = getattr(owner, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, slow)
        train.run(trainings.params(train__log_every=4, stage2__validate_epochs=2), "stage2", recorder)
    (share,) = [one["waiting_for_data"] for _, one in recorder.metrics if "waiting_for_data" in one]
    return share


@pytest.fixture
def _one_thread() -> Iterator[None]:
    # On a busy machine, two threads that wait for each other are much slower than one.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_a_slow_loader_counts_as_waiting_and_a_slow_step_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _share(monkeypatch, Examples, "__getitem__", 0.1) > 0.5
    assert _share(monkeypatch, trainer.step, "backward", 0.4) < 0.5
