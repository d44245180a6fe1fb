"""Which version becomes the champion: a real registry, and many promotions at once."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from goal import config
from goal.cli import main
from goal.config import Params
from goal.errors import UserError
from goal.stages import register as stage
from goal.tracking import mlflow_store, promotion, registry
from tests import registered, tiny
from tests.servers import Server


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two trained models, registered as versions 1 and 2 of whatever name a test takes."""
    with pytest.MonkeyPatch.context() as patch:
        registered.make(tmp_path_factory.mktemp("project"), patch)
        for seed in (1, 2):
            registered.train(seed)
            shutil.copytree("models/stage2", f"kept/{seed}/models/stage2")
            shutil.copytree("metrics/stage2", f"kept/{seed}/metrics/stage2")
            shutil.copy("dvc.lock", f"kept/{seed}")
        yield Path.cwd()


def register(values: Params, seed: int) -> None:
    """The version of that seed becomes the challenger."""
    shutil.copytree(f"kept/{seed}", ".", dirs_exist_ok=True)
    stage.run(values)


def client() -> MlflowClient:
    return MlflowClient(mlflow_store.uri(), mlflow_store.uri())


def aliases(name: str) -> dict[str, str]:
    found = {
        alias: registry.by_alias(client(), name, alias) for alias in ("champion", "previous", "challenger")
    }
    return {alias: str(version.version) for alias, version in found.items() if version}


def decision_of(name: str, version: str) -> str:
    return client().get_model_version(name, version).tags["goal.decision"]


def promoted(values: Params, version: int | None = None, reason: str = "") -> None:
    promotion.promote(values, promotion.judge(values, version), reason)


def test_the_way_of_two_versions(project: Path) -> None:
    values = registered.params("way")
    register(values, 1)
    promoted(values, reason="a beginning")
    assert aliases("way") == {"champion": "1", "challenger": "1"}
    assert "a beginning; the first champion" in decision_of("way", "1")
    with pytest.raises(UserError, match="version 1 is the champion already"):
        promotion.judge(values)
    register(values, 2)
    promoted(values)
    assert aliases("way") == {"champion": "2", "previous": "1", "challenger": "2"}
    assert "replaces version 1" in decision_of("way", "2")
    promotion.rollback(values, "it was slower")
    assert aliases("way") == {"champion": "1", "challenger": "2"}
    assert "it was slower" in decision_of("way", "1")
    assert "rolled back to version 1: it was slower" in decision_of("way", "2")
    with pytest.raises(UserError, match="nothing to go back to"):
        promotion.rollback(values, "again")


def test_an_alias_of_its_own_has_its_own_champion_and_its_own_way_back(project: Path) -> None:
    values = registered.params("aside")
    register(values, 1)
    promoted(values)
    promotion.promote(values, promotion.judge(values, 1, alias="staging"), "")
    register(values, 2)
    decision = promotion.judge(values, alias="staging")
    assert decision.champion == 1
    promotion.promote(values, decision, "to look at")
    named = {"challenger": 2, "champion": 1}
    assert client().get_registered_model("aside").aliases == named | {"staging": 2, "previous-staging": 1}
    promotion.rollback(values, "looked at", "staging")
    assert client().get_registered_model("aside").aliases == named | {"staging": 1}


@pytest.mark.parametrize("alias", ["challenger", "previous", "previous-x", "latest", "v3", "a b", "", "-x"])
def test_an_alias_that_means_something_else_is_no_target(project: Path, alias: str) -> None:
    with pytest.raises(UserError, match="--alias"):
        promotion.judge(registered.params("way"), 1, alias=alias)


def test_a_failed_gate_keeps_the_champion_and_is_recorded(project: Path) -> None:
    register(registered.params("gated"), 1)
    promoted(registered.params("gated"))
    hard = [
        {"benchmark": "test", "metric": "text_to_image_r1", "rule": "minimum", "value": 0.0},
        {"benchmark": "test", "metric": "image_to_text_r1", "rule": "minimum", "value": 100.0},
        {"benchmark": "test", "metric": "text_to_image_r10", "rule": "improves", "value": 0.0},
        {"benchmark": "short", "metric": "text_to_image_r1", "rule": "max_drop", "value": 1.0},
    ]
    values = registered.params("gated", gates=hard)
    register(values, 2)
    decision = promotion.judge(values)
    assert [outcome.passed for outcome in decision.outcomes] == [True, False, False, False]
    details = json.loads(Path("metrics/stage2/details/test.json").read_text())
    measured = details["metrics"]["text_to_image_r1"]["mean"]
    assert decision.outcomes[0].candidate == pytest.approx(measured, abs=1e-3)
    assert decision.outcomes[3].reason == "not measured"
    assert aliases("gated")["champion"] == "1"
    with pytest.raises(UserError, match="version 2: not promoted: .*image_to_text_r1 minimum"):
        promotion.promote(values, decision, "please")
    assert aliases("gated")["champion"] == "1"
    assert "refused: test image_to_text_r1 minimum" in decision_of("gated", "2")
    assert decision_of("gated", "2").endswith("; asked for: please")


def test_a_gate_on_another_data_set_asks_for_its_measurement(project: Path) -> None:
    shutil.copytree("data/tiny", "data/other", dirs_exist_ok=True)
    one = {"benchmark": "other/test", "metric": "text_to_image_r1", "rule": "max_drop", "value": 100.0}
    values = registered.params("elsewhere", gates=[one])
    register(values, 1)
    assert promotion.judge(values).outcomes[0].reason == "not measured"
    registered.measure(on="other")
    stage.run(values)
    promoted(values)
    # Trained anew: what lies there was measured on other weights.
    register(values, 2)
    decision = promotion.judge(values)
    assert decision.faults == ("other/test: other pictures or texts than champion 1 was measured on",)
    registered.measure(on="other")
    stage.run(values)
    decision = promotion.judge(values)
    assert not decision.faults
    assert decision.outcomes[0].reason.startswith("drop ")
    run = client().get_model_version("elsewhere", "2").run_id
    kept = client().list_artifacts(run, "evaluation/on/other/ranks")
    assert [Path(one.path).name for one in kept] == ["test.parquet"]


def test_the_command_line_shows_every_gate_and_a_dry_run_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = registered.params("shown")
    register(values, 1)
    monkeypatch.setattr(config, "load", lambda: values)
    dry = CliRunner().invoke(main.app, ["promote", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "minimum 0" in dry.output
    assert "pass: " in dry.output
    assert "would become the champion" in dry.output
    assert aliases("shown") == {"challenger": "1"}
    assert CliRunner().invoke(main.app, ["promote", "1", "--reason", "by hand"]).exit_code == 0
    assert "by hand" in decision_of("shown", "1")
    again = CliRunner().invoke(main.app, ["promote", "7"])
    assert isinstance(again.exception, UserError)
    assert "no version 7" in str(again.exception)


def test_benchmark_data_other_than_the_champion_s_is_refused_unless_said(project: Path) -> None:
    values = registered.params("moved")
    register(values, 1)
    promoted(values)
    register(values, 2)
    client().set_model_version_tag("moved", "2", "goal.benchmark.test", "other")
    decision = promotion.judge(values)
    assert decision.faults == ("test: other pictures or texts than champion 1 was measured on",)
    with pytest.raises(UserError, match="other pictures"):
        promotion.promote(values, decision, "")
    promotion.promote(values, promotion.judge(values, new_data=True), "new test set")
    assert aliases("moved")["champion"] == "2"
    assert "not compared with it" in decision_of("moved", "2")


def test_weights_without_a_run_are_refused(project: Path) -> None:
    values = registered.params("stray", model="stage1")
    stage.run(values)
    with pytest.raises(UserError, match="it has no run"):
        promoted(values)
    assert "champion" not in aliases("stray")


def test_a_decision_is_void_once_the_champion_has_changed(project: Path) -> None:
    values = registered.params("late")
    register(values, 1)
    register(values, 2)
    early = promotion.judge(values, 1)
    promoted(values, 2)
    with pytest.raises(UserError, match="another promotion came first: the champion is version 2, not None"):
        promotion.promote(values, early, "")
    assert aliases("late")["champion"] == "2"


def test_of_twenty_promotions_at_once_one_wins_and_the_others_say_so(project: Path) -> None:
    values = registered.params("race")
    register(values, 1)
    promoted(values)
    register(values, 2)
    said = race(values, 20)
    losers = [words for words in said if words]
    assert len(losers) == 19
    assert all("another promotion" in words for words in losers), set(losers)
    assert aliases("race") == {"champion": "2", "previous": "1", "challenger": "2"}
    assert "replaces version 1" in decision_of("race", "2")


def race(values: Params, count: int) -> list[str]:
    """What each of so many processes says that promote the challenger at once; the winner says nothing."""
    fork = multiprocessing.get_context("fork")
    results, barrier = fork.SimpleQueue(), fork.Barrier(count)
    racers = [fork.Process(target=_race, args=(values, barrier, results)) for _ in range(count)]
    for racer in racers:
        racer.start()
    said = [results.get() for _ in racers]
    for racer in racers:
        racer.join()
    return said


def _race(values: Params, barrier: Barrier, results: SimpleQueue) -> None:
    decision = promotion.judge(values)
    barrier.wait()
    try:
        promotion.promote(values, decision, "")
        results.put("")
    except UserError as error:
        results.put(str(error))


@pytest.mark.slow
def test_the_same_through_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registry, artefacts and lock by way of a real MLflow server."""
    registered.make(tmp_path, monkeypatch)
    server = Server(tmp_path)
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
        values = registered.params("remote")
        for seed in (1, 2):
            registered.train(seed)
            stage.run(values)
            said = race(values, 8)
            assert sum(not words for words in said) == 1
            assert all("another promotion" in words for words in said if words), set(said)
        assert aliases("remote") == {"champion": "2", "previous": "1", "challenger": "2"}
        promotion.rollback(values, "back")
        assert aliases("remote") == {"champion": "1", "challenger": "2"}
        # In a process of its own, as users do: what MLflow keeps of other tests does not matter there.
        load = (
            "import mlflow, pandas as pd;"
            "model = mlflow.pyfunc.load_model('models:/remote@champion');"
            "print(model.predict(pd.DataFrame({'text': ['A dog.']})).shape)"
        )
        done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == f"(1, {tiny.SPEC.embed_dim})"
    finally:
        server.stop()


def test_a_promotion_that_is_killed_is_in_no_way_of_the_next(project: Path) -> None:
    values = registered.params("stuck")
    register(values, 1)
    killed = multiprocessing.get_context("fork").Process(target=_die_moving, args=("stuck",))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert "champion" not in aliases("stuck")
    promoted(values)
    assert aliases("stuck")["champion"] == "1"


def _die_moving(name: str) -> None:
    with promotion._moving(client(), name, "champion", None, 1):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_what_has_begun_is_done(project: Path, number: signal.Signals) -> None:
    """Also where a library's thread would take it, as numpy's and Arrow's may."""
    name = f"asked-{number}"
    register(registered.params(name), 1)
    mover = multiprocessing.get_context("fork").Process(target=_move_and_be_asked, args=(name, number))
    mover.start()
    mover.join()
    assert mover.exitcode == 0, "what it had begun is done"
    assert aliases(name)["champion"] == "1"


def _move_and_be_asked(name: str, number: signal.Signals) -> None:
    threading.Thread(target=time.sleep, args=[60], daemon=True).start()
    with promotion._moving(client(), name, "champion", None, 1):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        client().set_registered_model_alias(name, "champion", "1")


def test_a_move_on_mlflow_s_page_is_noticed_and_undone(
    project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = registered.params("page")
    register(values, 1)
    promoted(values)
    register(values, 2)
    assert "outside" not in caplog.text
    client().set_registered_model_alias("page", "champion", "2")
    monkeypatch.setattr(config, "load", lambda: values)
    dry = CliRunner().invoke(main.app, ["promote", "--dry-run"])
    assert (dry.exit_code, dry.output) == (0, "dry run: page version 2 is the champion already\n")
    words = "the alias `champion` was moved outside `goal promote` and `goal rollback`: from version 1 to 2"
    assert words in caplog.text
    assert CliRunner().invoke(main.app, ["rollback", "--reason", "a slip"]).exit_code == 0
    assert aliases("page") == {"champion": "1", "challenger": "2"}
    assert "champion again after version 2: a slip" in decision_of("page", "1")
    # Also of an alias that somebody removed.
    client().delete_registered_model_alias("page", "champion")
    promotion.rollback(values, "another slip")
    assert aliases("page")["champion"] == "1"
    caplog.clear()
    promotion.judge(values, 2)
    assert "outside" not in caplog.text


def test_a_rollback_goes_to_the_version_that_is_named(project: Path) -> None:
    values = registered.params("named")
    register(values, 1)
    register(values, 2)
    promoted(values, 1)
    promoted(values, 2)
    promotion.rollback(values, "slower", to=1)
    assert aliases("named") == {"champion": "1", "challenger": "2"}
    promotion.rollback(values, "not slower after all", to=2)
    assert aliases("named") == {"champion": "2", "previous": "1", "challenger": "2"}
    assert "champion again after version 1: not slower after all" in decision_of("named", "2")
    with pytest.raises(UserError, match="version 2 is the champion already"):
        promotion.rollback(values, "again", to=2)
    with pytest.raises(UserError, match="no version 7"):
        promotion.rollback(values, "again", to=7)
    assert aliases("named")["champion"] == "2"


def test_a_promotion_from_elsewhere_is_noticed_before_and_after_the_move(project: Path) -> None:
    """Another folder with the same registry does not see this one's lock."""
    values = registered.params("shared")
    register(values, 1)
    register(values, 2)

    def move(*versions: str) -> None:
        with promotion._moving(client(), "shared", "champion", None, 1):
            for version in versions:
                client().set_registered_model_alias("shared", "champion", version)

    with pytest.raises(UserError, match="came first: the champion is version 2, not 1; look at its result"):
        move("1", "2")
    with pytest.raises(UserError, match="champion is version 2, not None; nothing was changed"):
        move("1")
    assert aliases("shared")["champion"] == "2"
