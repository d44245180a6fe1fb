"""A tracking server that is down, silent or lost in the middle costs no training and gets all later."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from goal import config
from goal.config import paths
from goal.tracking import mlflow_runs
from goal.tracking.journal import owned
from tests.servers import Server, free_port, until
from tests.tracking.tracked import artifacts, runs, steps_of, train


@pytest.mark.parametrize("patience", [2.0, 0.0])
def test_a_server_that_is_down_costs_nothing_and_gets_all_later(
    patience: float, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:pass-word@127.0.0.1:{free_port()}")
    with monkeypatch.context() as short:
        short.setitem(mlflow_runs.PATIENCE, "FINISHED", patience)
        train(config.load(), range(1, 8))
    assert "are kept in" in caplog.text
    assert "pass-word" not in caplog.text
    (kept,) = paths.work_dir("tracking").glob("*/lines.jsonl")
    assert "pass-word" not in kept.read_text()
    until(lambda: not owned(kept.parent))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # The next record of any kind delivers it: here the evaluation, which must then find its run.
    mlflow_runs.evaluation(config.load(), "stage1", {"test/text_to_image_r1": 12.5})
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
        monkeypatch.setitem(mlflow_runs.PATIENCE, "FINISHED", 0.5)
        train(config.load(), range(1, 4))
    assert "are kept in" in caplog.text
    assert Path("models/stage1/model.safetensors").exists()


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
    with caplog.at_level(logging.INFO), mlflow_runs.training(config.load(), "stage1") as tracker:
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
        until(lambda: "answers again" in caplog.text)
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("FINISHED", list(range(1, 31)))
