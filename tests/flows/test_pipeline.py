"""The flow itself on a small DVC project: order, retries, what is skipped, what the run's page shows."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import ROOT
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# `register` meets a server that is down, the first time.
DVC = """
stages:
  report:
    cmd: python report.py
    deps: [report.py]
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
"""
PROGRAMS = {
    "report": """
        from pathlib import Path
        Path("reports").mkdir()
        Path("reports/table.md").write_text("| model | R@1 |\\n|---|---|\\n| stage2 | 90.0 |\\n")
    """,
    "register": """
        import sys
        from pathlib import Path
        tries = Path("../tries")
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        if len(tries.read_text()) < 2:
            print("goal: MLflow does not answer")
            sys.exit(69)
        Path("metrics").mkdir()
        Path("metrics/registered.json").write_text('{"name": "goal"}')
    """,
    "broken": """
        import sys
        from pathlib import Path
        tries = Path("../broken")
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        print("goal: params.yaml: seed: missing")
        sys.exit(2)
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
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git(root, "init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "start")
    from flows import pipeline

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
def test_a_run_retries_what_may_pass_and_shows_its_results(home: Path) -> None:
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
        assert walk(["report", "register"], None, [], 1.0) == branch
        names = [run.state.name for run in client.read_task_runs()]
    assert sorted(names) == ["Completed", "Completed", "Skipped", "Skipped"]


@pytest.mark.usefixtures("server")
def test_a_users_error_is_told_at_once(home: Path) -> None:
    from prefect import flow

    from flows import pipeline
    from flows.stage import StageError

    with pytest.raises(StageError, match="broken: goal: params.yaml: seed: missing"):
        flow(pipeline.walk, name="goal")(["broken"], None, [], 1.0)
    assert (home / ".dvc" / "tmp" / "flows" / "broken").read_text() == "x"
