"""What lands in MLflow: real stores, real kills."""

import json
import logging
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import yaml
from mlflow.types import Schema

from goal import config
from goal.config import paths
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.runtime import files
from goal.tracking import lineage, mlflow_store, provenance, records, sync
from goal.tracking import runs as tracking
from goal.training.progress import Silent
from tests.tracking.tracked import artifacts, client, interrupted, runs, steps_of, train


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
    assert not [path for path in records.root().iterdir() if path.is_dir()]


def test_the_data_of_training_and_evaluation_has_its_place_columns_and_size(project: Path) -> None:
    for split, number in (("train", 3), ("test", 2)):
        rows = [Row(str(one), f"{one}.png", 8, 8, ("A dog.",), "test") for one in range(number)]
        manifest.write(rows, paths.manifest("scenes", split))
    train(config.load(), range(1, 3))
    tracking.evaluation(config.load(), "stage1", {"test/text_to_image_r1": 3.0})
    (run,) = runs()
    found = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    contexts = {name: one.tags[0].value for name, one in found.items()}
    assert contexts == {"scenes": "training", "scenes/test": "evaluation"}
    for name, number in (("scenes", 3), ("scenes/test", 2)):
        data = found[name].dataset
        assert json.loads(data.source) == {"uri": str(project / "data" / "scenes")}
        assert json.loads(data.profile) == {"num_rows": number}
        columns = json.loads(data.schema)["mlflow_colspec"]
        assert [column.name for column in Schema.from_json(json.dumps(columns))] == manifest.MANIFEST.names


def test_experiment_and_runs_say_what_they_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOAL_FLOW_RUN", "0123")
    monkeypatch.setenv("GOAL_BRANCH", "runs/4567")
    train(config.load(), range(1, 3))
    (run,) = runs()
    assert run.data.tags["mlflow.note.content"].startswith("`goal train stage1`, preset `scenes`, data set `")
    assert (run.data.tags["goal.flow_run"], run.data.tags["goal.branch"]) == ("0123", "runs/4567")
    about = client().get_experiment(run.info.experiment_id).tags["mlflow.note.content"]
    assert "CLIP fine-tuned on long captions" in about


def test_the_load_of_the_machine_is_recorded(project: Path) -> None:
    with tracking.training(config.load(), "stage1"):
        deadline = time.monotonic() + 60
        while not any(key.startswith("system/cpu") for run in runs() for key in run.data.metrics):
            assert time.monotonic() < deadline
            time.sleep(0.2)


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
    assert not records.root().exists()


def test_evaluations_land_on_the_run_of_their_model(project: Path) -> None:
    params = config.load()
    train(params, range(1, 3))
    for benchmark in ("test.json", "details/test.json", "ranks/test.parquet"):
        path = paths.metrics_dir("stage1") / benchmark
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
        path = paths.reports_dir() / name
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
    Path("models/stage1").mkdir()
    Path("models/stage1/model.safetensors").write_text("weights")
    given = [(Path(name), "") for name in ("a/../outside.txt", "..", "a")]
    records.write(lineage.evaluation(config.load(), "stage1", {}), given)
    sync.run()
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
        tracker.log_metrics({"loss/total": 1.0}, 2)
    (run,) = runs()
    assert "not recorded" in caplog.text
    assert (run.info.status, steps_of(run)) == ("FINISHED", [2])


def test_cold_starts_at_once_make_one_store(project: Path) -> None:
    mlflow_store.prepare()
    Path("mlflow.db").unlink()
    fork = multiprocessing.get_context("fork")
    starters = [fork.Process(target=mlflow_store.connect) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert [starter.exitcode for starter in starters] == [0, 0, 0, 0]
    with sqlite3.connect("mlflow.db") as store:
        assert store.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_the_user_s_own_settings_of_mlflow_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    mlflow_store.prepare(mlflow_store.IMPATIENT)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
