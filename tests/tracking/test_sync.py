"""A tracking server that is down, silent or lost in the middle costs no training and gets all later."""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from goal import config
from goal.errors import Unavailable
from goal.tracking import mlflow_store, records, sync
from goal.tracking import runs as tracking
from goal.tracking.records import Record
from tests.imports import ROOT
from tests.servers import Server, free_port, until
from tests.tracking.tracked import artifacts, interrupted, runs, steps_of, train


@pytest.mark.parametrize("patience", [2.0, 0.0])
def test_a_server_that_is_down_costs_nothing_and_gets_all_later(
    patience: float, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:pass-word@127.0.0.1:{free_port()}")
    with monkeypatch.context() as short:
        short.setitem(sync.PATIENCE, "FINISHED", patience)
        train(config.load(), range(1, 8))
    assert "are kept in" in caplog.text
    assert "pass-word" not in caplog.text
    (kept,) = records.root().glob("*/run.json")
    assert "pass-word" not in kept.read_text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # The next record of any kind sends it: here the evaluation, which must then find its run.
    tracking.evaluation(config.load(), "stage1", {"test/text_to_image_r1": 12.5})
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("FINISHED", list(range(1, 8)))
    assert run.data.metrics["test/text_to_image_r1"] == 12.5
    assert "loss.csv" in artifacts(run)
    assert not kept.exists()


def test_a_server_that_accepts_and_never_answers_holds_nothing_up(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setitem(sync.PATIENCE, "FINISHED", 0.5)
        train(config.load(), range(1, 4))
    assert "are kept in" in caplog.text
    assert Path("models/stage1/model.safetensors").exists()


@pytest.mark.parametrize("resumed_with_a_server", [False, True])
def test_killed_and_resumed_without_a_server_it_ends_as_one_whole_run(
    resumed_with_a_server: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for name in ("KILLED", "FINISHED"):
        monkeypatch.setitem(sync.PATIENCE, name, 0.0)
    interrupted(config.load(), range(1, 11))
    killed = get_context("fork").Process(target=_train_and_die)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    if resumed_with_a_server:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.setitem(sync.PATIENCE, "FINISHED", 60.0)
    train(config.load(), range(15, 31))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sync.run()
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("FINISHED", list(range(1, 31)))
    assert artifacts(run, "figures") == {"figures/loss.png"}
    assert records.pending() == []


def _train_and_die() -> None:
    with tracking.training(config.load(), "stage1") as tracker:
        for step in range(6, 21):
            tracker.log_metrics({"loss/total": 1 / step}, step)
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_server_took_and_did_not_confirm_is_not_there_twice(project: Path) -> None:
    """The whole record is sent again, as after a kill between a batch and its answer."""
    interrupted(config.load(), range(1, 700))
    (folder,) = (path for path in records.root().iterdir() if path.is_dir())
    for _ in range(2):
        record = Record(folder)
        record.sent = 0
        client = mlflow_store.connect()
        mlflow_store.send(client, mlflow_store.attach(client, record), record)
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("KILLED", list(range(1, 700)))
    assert len(run.inputs.dataset_inputs) == 1


def test_the_verb_sends_what_is_left_and_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def goal_sync() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "goal", "sync"]
        given = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(words, env=given, capture_output=True, text=True, check=False)

    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        away.setitem(sync.PATIENCE, "FINISHED", 0.0)
        train(config.load(), range(1, 8))
        with pytest.raises(Unavailable):
            sync.run()
        assert goal_sync().returncode == 69
    assert "1 records sent to sqlite" in goal_sync().stdout
    assert "0 records sent to sqlite" in goal_sync().stdout
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("FINISHED", list(range(1, 8)))


@pytest.fixture
def server(project: Path) -> Iterator[Server]:
    one = Server(project)
    yield one
    one.stop()


@pytest.mark.slow
def test_a_server_lost_in_the_middle_of_a_training_gets_what_it_missed(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    server.start()
    with caplog.at_level(logging.INFO), tracking.training(config.load(), "stage1") as tracker:
        for step in range(1, 11):
            tracker.log_metrics({"loss/total": 1 / step}, step)
        until(lambda: any(runs()) and steps_of(runs()[0]) == list(range(1, 11)))
        server.stop()
        for step in range(11, 21):
            tracker.log_metrics({"loss/total": 1 / step}, step)
        until(lambda: "the work goes on" in caplog.text)
        server.start()
        for step in range(21, 31):
            tracker.log_metrics({"loss/total": 1 / step}, step)
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("FINISHED", list(range(1, 31)))
