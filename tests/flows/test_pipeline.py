"""The flow on a small DVC project: order of stages, retries, skipped stages, what the run's page shows."""

import importlib
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.imports import ROOT
from tests.servers import Server, free_port, holder, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# At its first try, `register` finds MLflow's server down.
DVC = """
stages:
  code:
    cmd: python listing.py
    always_changed: true
    outs: [code]
  report:
    cmd: python report.py
    deps: [code, report.py]
    outs: [reports]
  register:
    cmd: python register.py
    deps: [reports, register.py]
    metrics:
      - metrics/registered.json:
          cache: false
  broken:
    cmd: python broken.py
    deps: [broken.py]
  data:
    cmd: python few.py
    deps: [few.py]
    outs: [data]
  train:
    cmd: touch ../trained
    deps: [data]
"""
PROGRAMS = {
    "listing": """
        from pathlib import Path
        Path("code").write_text("goal/report.py 0123\\n")
    """,
    "report": """
        from pathlib import Path
        import sys
        Path("../reported").touch()
        if "seed: 13" in Path("params.yaml").read_text():
            print("goal: reports/table.md: 13 is no good number")
            sys.exit(2)
        Path("reports").mkdir()
        Path("reports/table.md").write_text("| model | R@1 |\\n|---|---|\\n| stage2 | 90.0 |\\n")
    """,
    "register": """
        import os
        import sys
        from pathlib import Path
        tries = Path("../tries")
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        if len(tries.read_text()) < 2:
            print("goal: MLflow does not answer")
            sys.exit(69)
        Path("metrics").mkdir()
        Path("metrics/registered.json").write_text('{"name": "goal"}')
        Path("metrics/origin").write_text(f"{os.environ['GOAL_BRANCH']} {os.environ['GOAL_FLOW_RUN']}")
    """,
    "broken": """
        import sys
        from pathlib import Path
        tries = Path("../broken")
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        print("goal: params.yaml: seed: missing")
        sys.exit(2)
    """,
    # Fewer pictures than params.yaml asks for, as from a folder where most rows are rejected.
    "few": """
        from goal import config
        from goal.config import paths
        from goal.datasets import manifest
        from goal.runtime import files
        data = config.load().data
        summary = {"source": data.source, "path": data.path}
        files.write_json(summary, paths.data_dir(data.name) / "summary.json")
        rows = [manifest.Row(str(one), f"{one}.png", 8, 8, ("A dog.",), "few") for one in range(3)]
        manifest.write(rows, paths.manifest(data.name, "train"))
    """,
}


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    for name, program in PROGRAMS.items():
        (root / f"{name}.py").write_text(textwrap.dedent(program))
    (root / "dvc.yaml").write_text(DVC)
    (root / "goal").symlink_to(ROOT / "goal")  # for `goal check`
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git(root, "init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "start")
    pipeline = importlib.import_module("flows.jobs").pipeline  # jobs reads the presets of the real project
    monkeypatch.setattr(pipeline, "HOME", root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    return root


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """Prefect's own server on a temporary store, for this process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.mark.usefixtures("server")
def test_a_run_retries_transient_errors_and_shows_its_results(home: Path) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client

    from flows import pipeline

    walk = flow(pipeline.walk, name="goal")
    branch = walk(["report", "register"], None, [], 1.0)
    assert (home / ".dvc" / "tmp" / "flows" / "tries").read_text() == "xx"
    assert git(home, "show", f"{branch}:metrics/registered.json") == '{"name": "goal"}'
    assert git(home, "status", "--porcelain") == ""
    with get_client(sync_client=True) as client:
        found = {artifact.key: str(artifact.data) for artifact in client.read_artifacts()}
        assert "| stage2 | 90.0 |" in found["benchmark-table"]
        assert branch in found["benchmark-table"]
        assert float(found["stages"]) == 100
        assert "mlflow-version" not in found, "MLflow is down: no link, and no fault of the run"
        (run,) = client.read_flow_runs()
        assert git(home, "show", f"{branch}:metrics/origin") == f"{branch} {run.id}"
        assert walk(["report", "register"], None, [], 1.0) == branch
        names = [run.state.name for run in client.read_task_runs()]
    # The code is listed each time.
    assert sorted(names) == ["Completed"] * 4 + ["Skipped"] * 2


@pytest.mark.usefixtures("server")
def test_a_user_error_is_not_retried(home: Path) -> None:
    from prefect import flow

    from flows import pipeline
    from flows.stage import StageError

    with pytest.raises(StageError, match="broken: goal: params.yaml: seed: missing"):
        flow(pipeline.walk, name="goal")(["broken"], None, [], 1.0)
    assert (home / ".dvc" / "tmp" / "flows" / "broken").read_text() == "x"


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "stage2.speed=3",
            "override 'stage2.speed=3': expected section.field=value with a field of params.yaml",
        ),
        # What the check refuses, a stage would refuse hours later.
        ("stage2.warmup_steps=1000", "check: goal: this cannot work; fix stage2: stage2.warmup_steps 1000"),
        ("seed=13", "report: goal: reports/table.md: 13 is no good number"),
    ],
)
def test_an_expected_end_is_one_line_and_no_traceback(
    home: Path, logged: list[str], override: str, words: str
) -> None:
    from prefect.client.orchestration import get_client

    from flows import jobs

    state = jobs.evaluate(overrides=[override], return_state=True)
    assert state.is_failed()
    assert state.message.startswith(words)
    assert not [line for line in logged if "Traceback" in line]
    assert sum(words in line for line in logged if "Finished in state" in line) >= 1
    ran = (home / ".dvc" / "tmp" / "flows" / "reported").exists()
    assert ran == (override == "seed=13"), "the check comes before the first stage"
    with get_client(sync_client=True) as client:
        (run,) = [run for run in client.read_flow_runs() if run.id == state.state_details.flow_run_id]
    assert run.name == f"evaluate {override}"


@pytest.mark.usefixtures("server")
def test_what_the_number_of_pictures_forbids_is_found_once_data_knows_it(home: Path) -> None:
    from prefect import flow

    from flows import pipeline
    from flows.stage import StageError

    with pytest.raises(StageError, match="check: goal: this cannot work; fix stage1: .*pictures"):
        flow(pipeline.walk, name="goal")(["train"], None, [], 1.0)
    folder = home / ".dvc" / "tmp" / "flows"
    assert len(list(folder.glob("*/data/*/summary.json"))) == 1
    assert not (folder / "trained").exists()


@pytest.mark.usefixtures("server")
def test_a_run_keeps_the_name_that_its_user_gave(home: Path) -> None:
    """Prefect gives others a name of two words, which tells nothing."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows import checkout, jobs

    names, tags = {}, []
    with get_client(sync_client=True) as client:
        for given in (None, "Tuesday's try", "warm-up"):
            made = client.create_flow_run(jobs.evaluate, name=given, tags=["goal"])
            run_flow(jobs.evaluate, flow_run=made)
            run = client.read_flow_run(made.id)
            names[given] = run.name
            tags.append(run.tags)
    assert names == {None: "evaluate", "Tuesday's try": "Tuesday's try", "warm-up": "warm-up"}
    (branch,) = git(
        home, "for-each-ref", "--format=%(refname:short)", f"refs/heads/{checkout.BRANCHES}"
    ).split()
    assert tags == [["goal", branch]] * 3


@pytest.mark.usefixtures("server")
def test_a_promotion_waits_for_a_registry_that_comes_back(home: Path, logged: list[str]) -> None:
    from flows import jobs

    mlflow = Server(home)
    mlflow.port = int(os.environ["MLFLOW_TRACKING_URI"].rsplit(":", 1)[1])

    def start_the_server() -> None:
        until(lambda: any(f":{mlflow.port}" in line for line in logged))
        mlflow.start()

    starter = threading.Thread(target=start_the_server)
    starter.start()
    try:
        state = jobs.promote(return_state=True)
    finally:
        starter.join()
        mlflow.stop()
    assert state.is_failed()
    assert "no version with the alias `challenger`" in state.message
    assert not [line for line in logged if "Traceback" in line]


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What flow and task runs log."""
    from prefect.logging.configuration import setup_logging

    # Before the handler is added, since it removes all handlers.
    setup_logging()
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))  # with the traceback, if there is one

    handler = Handler()
    loggers = [logging.getLogger(f"prefect.{kind}_runs") for kind in ("flow", "task")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.usefixtures("server")
def test_a_run_waits_for_the_gpu_even_if_the_server_lets_it_start(home: Path, logged: list[str]) -> None:
    """If the server takes a live run for dead, its queue starts the next one."""
    from prefect import flow

    from flows import checkout, pipeline

    lock = home / checkout.PLACE / "gpu.lock"
    other = holder(lock)
    seen: list[bool] = []

    def end_the_other() -> None:
        until(lambda: "the GPU is in use: waiting" in logged)
        seen.append((home / checkout.PLACE / "tries").exists())
        other.kill()

    watcher = threading.Thread(target=end_the_other)
    watcher.start()
    flow(pipeline.walk, name="goal")(["report"], None, [], 1.0)
    watcher.join()
    assert seen == [False]


@contextmanager
def lone_server(port: int, folder: Path) -> Iterator[str]:
    """A Prefect server that is ended by kill -9; started again, it has the same data."""
    quiet = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    process = subprocess.Popen(
        command, env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/api/health"))
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    with suppress(requests.RequestException):
        return requests.get(address, timeout=5).ok
    return False


def test_a_run_survives_a_lost_server_and_only_its_page_suffers(tmp_path: Path, logged: list[str]) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import page

    port = free_port()
    with ExitStack() as alive:
        address = alive.enter_context(lone_server(port, tmp_path))

        @flow(name="goal")
        def loses_its_server() -> str:
            progress = page.Progress(2)
            alive.close()
            progress.step()
            page.gates(["a gate"])
            alive.enter_context(lone_server(port, tmp_path))
            progress.step()
            return "went on"

        with temporary_settings({PREFECT_API_URL: address}):
            assert loses_its_server() == "went on"
            with get_client(sync_client=True) as client:
                (bar,) = client.read_artifacts()
                (run,) = client.read_flow_runs()
    assert sum(line.startswith("missing on the run's page: ConnectError") for line in logged) == 2
    assert float(bar.data) == 100
    assert run.state.is_completed()
