"""What lands in MLflow: real stores, real servers, real kills."""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from goal import config, files, layout, tracking
from goal.config import Params
from goal.errors import Interrupted
from goal.record import provenance
from goal.record.journal import Journal, leftovers, owned
from goal.training.progress import Silent
from tests.servers import Server, free_port, until

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables, made once: they take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        tracking.prepare()
        tracking.connect(tracking.uri())
    return path


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in the current folder, before its first training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name, content in {
        "data/scenes/train.parquet": "rows",
        "data/scenes/val.parquet": "more rows",
        "models/base/model.safetensors": "first weights",
        "pairs/train/shard-00000.parquet": "pairs",
        "pairs/contact-sheet.png": "picture",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def train(params: Params, steps: range, weights: str = "trained", name: str = "stage1") -> None:
    """What goal.train does to the record."""
    with tracking.training(params, name) as tracker:
        for step in steps:
            tracker.log_metrics({"loss/total": 1 / step, "lr": 0.1}, step)
        curve = layout.metrics_dir(name) / "loss.csv"
        curve.parent.mkdir(parents=True, exist_ok=True)
        curve.write_text("step,lr,total\n1,0.1,1.0\n2,0.1,0.5\n")
        tracker.log_artifact(curve)
        layout.model_dir(name).mkdir(parents=True, exist_ok=True)
        (layout.model_dir(name) / "model.safetensors").write_text(weights)


def interrupted(params: Params, steps: range) -> None:
    def stopped() -> None:
        with tracking.training(params, "stage1") as tracker:
            for step in steps:
                tracker.log_metrics({"loss/total": 1 / step}, step)
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        stopped()


def client() -> MlflowClient:
    return MlflowClient(tracking.uri())


def runs() -> list[Run]:
    experiment = client().get_experiment_by_name("goal")
    return client().search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def steps_of(run: Run, key: str = "loss/total") -> list[int]:
    return [metric.step for metric in client().get_metric_history(run.info.run_id, key)]


def artifacts(run: Run, folder: str | None = None) -> set[str]:
    return {found.path for found in client().list_artifacts(run.info.run_id, folder)}


def test_a_training_leaves_a_run_with_all_that_made_it(project: Path) -> None:
    params = config.load()
    train(params, range(1, 8))
    (run,) = runs()
    assert (run.info.run_name, run.info.status) == ("stage1", "FINISHED")
    assert run.data.params["stage1.lr"] == "0.0003"
    assert run.data.params["register.name"] == "goal"
    assert set(run.data.params) == set(provenance.flatten(params.model_dump(by_alias=True)))
    assert steps_of(run) == list(range(1, 8))
    assert run.data.metrics["loss/total"] == pytest.approx(1 / 7)
    assert run.data.tags["goal.model"] == files.digest(Path("models/stage1/model.safetensors"))
    assert run.data.tags["goal.preset"] == "scenes"
    assert run.data.tags["goal.seed"] == "0"
    assert run.data.tags["mlflow.source.git.commit"] == provenance.UNKNOWN
    assert run.data.tags["goal.package.torch"] == provenance.packages()["torch"]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("scenes", provenance.md5(Path("data/scenes")))
    assert artifacts(run) == {"loss.csv", "params.yaml", "packages.txt", "figures"}
    assert artifacts(run, "figures") == {"figures/loss.png"}
    assert not list(layout.work_dir("tracking").glob("*/lines.jsonl"))


def test_the_load_of_the_machine_is_recorded(project: Path) -> None:
    with tracking.training(config.load(), "stage1"):
        deadline = time.monotonic() + 60
        while not any(key.startswith("system/cpu") for run in _found() for key in run.data.metrics):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def _found() -> list[Run]:
    return runs() if client().get_experiment_by_name("goal") else []


def test_a_stopped_training_goes_on_in_its_run_and_no_step_is_there_twice(project: Path) -> None:
    params = config.load()
    interrupted(params, range(1, 21))
    (run,) = runs()
    assert run.info.status == "KILLED"
    train(params, range(11, 41))
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert steps_of(run) == list(range(1, 41))


def test_a_run_killed_with_9_goes_on_too(project: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_train_and_die)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    train(config.load(), range(11, 31))
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert steps_of(run) == list(range(1, 31))


def _train_and_die() -> None:
    with tracking.training(config.load(), "stage1") as tracker:
        for step in range(1, 21):
            tracker.log_metrics({"loss/total": 1 / step}, step)
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_same_training_again_is_no_new_run_unless_its_result_differs(project: Path) -> None:
    params = config.load()
    train(params, range(1, 6))
    train(params, range(1, 6))
    (run,) = runs()
    assert (run.info.status, steps_of(run)) == ("FINISHED", [1, 2, 3, 4, 5])
    train(params, range(1, 6), weights="other")
    assert len({run.data.tags["goal.model"] for run in runs()}) == len(runs()) == 2


def test_other_parameters_data_or_start_are_other_runs(project: Path) -> None:
    params = config.load()
    train(params, range(1, 3))
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["stage1"]["lr"] = 1e-5
    train(config.parse(values, "changed"), range(1, 3))
    Path("data/scenes/train.parquet").write_text("other rows")
    train(params, range(1, 3))
    Path("models/base/model.safetensors").write_text("other weights")
    train(params, range(1, 3))
    assert len(runs()) == 4


def test_what_only_changes_the_pace_does_not_end_a_run(project: Path) -> None:
    interrupted(config.load(), range(1, 11))
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["train"]["loader_workers"] = 0
    train(config.parse(values, "changed"), range(6, 15))
    (run,) = runs()
    assert steps_of(run) == list(range(1, 15))


def test_a_failure_passes_through_and_the_run_says_failed(project: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.training(config.load(), "stage1"):
        raise ZeroDivisionError
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_switched_off_it_says_so_and_records_nothing(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["tracking"]["enabled"] = False
    params = config.parse(values, "off")
    caplog.set_level(logging.INFO)
    with tracking.training(params, "stage1") as tracker:
        tracker.log_metrics({"loss/total": 1.0}, 1)
        assert isinstance(tracker, Silent)
    tracking.evaluation(params, "stage1", {})
    assert caplog.text.count("tracking: off") == 2
    assert not layout.work_dir("tracking").exists()


def test_a_server_that_is_down_costs_nothing_and_gets_all_later(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:pass-word@127.0.0.1:{free_port()}")
    monkeypatch.setitem(tracking.PATIENCE, "FINISHED", 2.0)
    train(config.load(), range(1, 8))
    assert "are kept in" in caplog.text
    assert "pass-word" not in caplog.text
    (kept,) = layout.work_dir("tracking").glob("*/lines.jsonl")
    assert "pass-word" not in kept.read_text()
    until(lambda: not owned(kept.parent))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # The next record of any kind delivers it: here the evaluation, which must then find its run.
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
        monkeypatch.setitem(tracking.PATIENCE, "FINISHED", 0.5)
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
    with caplog.at_level(logging.INFO), tracking.training(config.load(), "stage1") as tracker:
        for step in range(1, 11):
            tracker.log_metrics({"loss/total": 1 / step}, step)
        until(lambda: bool(_found()) and steps_of(runs()[0]) == list(range(1, 11)))
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


def test_evaluations_land_on_the_run_of_their_model(project: Path) -> None:
    params = config.load()
    train(params, range(1, 3))
    for benchmark in ("test.json", "details/test.json", "ranks/test.parquet"):
        path = layout.metrics_dir("stage1") / benchmark
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    results = {"test/text_to_image_r1": 40.0, "test/image_to_text_r1": 41.0}
    tracking.evaluation(params, "stage1", results)
    tracking.evaluation(params, "stage1", results | {"test/image_to_text_r1": 42.0})
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert steps_of(run, "test/text_to_image_r1") == [0]
    assert steps_of(run, "test/image_to_text_r1") == [0, 1]
    assert run.data.metrics["test/image_to_text_r1"] == 42.0
    assert artifacts(run, "evaluation/ranks") == {"evaluation/ranks/test.parquet"}


def test_the_report_lands_on_the_run_of_its_model(project: Path) -> None:
    params = config.load()
    train(params, range(1, 3))
    for name in ("index.html", "pictures/test.png"):
        path = layout.reports_dir() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    tracking.report(params, "stage1")
    (run,) = runs()
    assert artifacts(run, "report") == {"report/index.html", "report/pictures"}
    assert artifacts(run, "report/pictures") == {"report/pictures/test.png"}


def test_zero_shot_has_one_run_however_often_it_is_measured(project: Path) -> None:
    for _ in range(2):
        tracking.evaluation(config.load(), "zero-shot", {"test/text_to_image_r1": 3.0})
    (run,) = runs()
    assert (run.info.run_name, run.info.status) == ("zero-shot", "FINISHED")
    assert run.data.params["seed"] == "0"
    assert steps_of(run, "test/text_to_image_r1") == [0]


def test_models_with_equal_weights_keep_their_own_runs(project: Path) -> None:
    """stage1.epochs 0 passes the base's weights on: same digest, two names."""
    params = config.load()
    train(params, range(0), weights="first weights")
    tracking.evaluation(params, "zero-shot", {"test/text_to_image_r1": 3.0})
    tracking.evaluation(params, "stage1", {"test/text_to_image_r1": 3.0})
    assert sorted(run.info.run_name for run in runs()) == ["stage1", "zero-shot"]


def test_a_second_process_of_the_same_work_is_not_recorded_and_says_so(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = config.load()
    with tracking.training(params, "stage1"), tracking.training(params, "stage1") as second:
        assert isinstance(second, Silent)
    assert "another process records the same work" in caplog.text
    assert len(runs()) == 1


def test_artefacts_cannot_leave_their_folder(project: Path) -> None:
    outside = project / "outside.txt"
    outside.write_text("x")
    Path("a").mkdir()
    with tracking.training(config.load(), "stage1") as tracker:
        tracker.log_artifact(Path("a/../outside.txt"))
        tracker.log_artifact(Path(".."))
        tracker.log_artifact(Path("a"))
    (run,) = runs()
    assert "outside.txt" in artifacts(run)
    assert {path.name for path in (project / "mlartifacts" / run.info.run_id / "artifacts").iterdir()} == {
        "outside.txt",
        "params.yaml",
        "packages.txt",
    }


def test_a_metric_that_mlflow_refuses_is_stated_and_the_others_arrive(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracking.training(config.load(), "stage1") as tracker:
        tracker.log_metrics({"no@such": 1.0}, 1)
        tracker.set_tags({"goal.note": "later"})
        tracker.log_metrics({"loss/total": 1.0}, 2)
    (run,) = runs()
    assert "not recorded" in caplog.text
    assert (run.info.status, steps_of(run)) == ("FINISHED", [2])


def test_cold_starts_at_once_make_one_store(project: Path) -> None:
    tracking.prepare()
    Path("mlflow.db").unlink()
    fork = multiprocessing.get_context("fork")
    starters = [fork.Process(target=tracking.connect, args=[tracking.uri()]) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert [starter.exitcode for starter in starters] == [0, 0, 0, 0]
    with sqlite3.connect("mlflow.db") as store:
        assert store.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_the_user_s_own_settings_of_mlflow_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    tracking.prepare(tracking.IMPATIENT)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_journal_survives_a_torn_line_and_has_one_owner(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "one")
    journal.write({"tags": {"a": "b"}})
    assert owned(tmp_path / "one")
    assert leftovers(tmp_path) == []
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "one")
    journal.close()
    with (tmp_path / "one" / "lines.jsonl").open("a") as lines:
        lines.write('{"metrics": {"loss')
    assert leftovers(tmp_path) == [tmp_path / "one"]
    again = Journal(tmp_path / "one")
    assert again.read() == [{"tags": {"a": "b"}}]
    again.write({"tags": {"c": "d"}})
    assert again.read() == [{"tags": {"a": "b"}}, {"tags": {"c": "d"}}]
    again.remove()
    assert not (tmp_path / "one").exists()
