"""The real servers and a real worker in a copy of the project: mine by deployment, promote, cancel, down."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.imports import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SECONDS = 900.0  # no speed is asserted: other work may share the machine
TINY = ["data.scenes.train=32", "data.scenes.val=8", "data.scenes.test=8", "data.scenes.twins=4"]
TINY += ["regions.sources=[fixed]", "regions.workers=1", "pairs.workers=1"]
# Long enough to be cancelled in the middle: drawing this many pictures takes minutes.
LONG = ["data.scenes.train=200000", "seed=1"]


class Project:
    """A copy of the project in a git repository of its own, and the servers that it started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def python(self, *words: str, code: int | None = 0) -> str:
        result = subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert code is None or result.returncode == code, result.stdout + result.stderr
        return result.stdout

    def git(self, *words: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout

    def start(self, deployment: str, **parameters: object) -> str:
        given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
        told = self.python("-m", "prefect", "deployment", "run", deployment, *given)
        return told.split("UUID: ")[1].split()[0]

    def ask(self, expression: str) -> object:
        """A value from Prefect's API, `client` being its client in the expression."""
        program = f"""
import json
from uuid import UUID
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
with get_client(sync_client=True) as client:
    print(json.dumps({expression}))
"""
        return json.loads(self.python("-c", program).splitlines()[-1])

    def state(self, run: str) -> str:
        return str(self.ask(f"client.read_flow_run(UUID({run!r})).state.type.value"))

    def wait(self, run: str) -> str:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            state = self.state(run)
            if state in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
                return state
            time.sleep(2)
        raise AssertionError(f"not done: {(self.root / 'run' / 'worker.log').read_text()[-3000:]}")

    def processes(self, *words: str) -> list[psutil.Process]:
        """What runs for this project, the words being part of the command line."""
        found = []
        for process in psutil.process_iter():
            try:
                mark, line = process.environ().get("GOAL_SERVERS"), process.cmdline()
            except psutil.Error:
                continue
            if mark == str(self.root / "run") and set(words) <= set(line):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("live") / "project"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    made = Project(root)
    made.git("init", "--quiet", "--initial-branch", "main")
    made.git("add", "--all")
    made.git("commit", "--quiet", "-m", "copy")
    try:
        told = made.python("-m", "infra.servers", "up")
        lines = [line.removeprefix("export ") for line in told.splitlines() if line.startswith("export ")]
        made.environment |= dict(line.split("=", 1) for line in lines)
        yield made
    finally:
        made.python("-m", "infra.servers", "down", code=None)
        for process in made.processes():
            process.kill()


def test_up_again_changes_nothing(project: Project) -> None:
    before = {process.pid for process in project.processes()}
    told = project.python("-m", "infra.servers", "up")
    assert told == project.python("-m", "infra.servers", "status")
    assert {process.pid for process in project.processes()} == before
    assert all("127.0.0.1" in address for address in (told.splitlines()[0], told.splitlines()[1]))
    listening = [
        connection
        for process in project.processes()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_the_deployments_and_the_gpu_limit_are_there(project: Project) -> None:
    told = project.python("-m", "prefect", "deployment", "ls")
    assert [name for name in ("train", "evaluate", "mine", "promote") if f"goal/{name}" not in told] == []
    assert project.ask("client.read_global_concurrency_limit_by_name('gpu').limit") == 1


def test_a_deployment_mines_pairs_and_leaves_the_checkout_alone(project: Project) -> None:
    head = project.git("rev-parse", "HEAD")
    run = project.start("goal/mine", overrides=TINY)
    assert project.wait(run) == "COMPLETED", (project.root / "run" / "worker.log").read_text()[-3000:]
    assert project.git("status", "--porcelain") == ""
    assert project.git("rev-parse", "HEAD") == head
    branch = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads/runs").strip()
    assert "pairs:" in project.git("show", f"{branch}:dvc.lock")
    filtered = f"ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID({run!r})]))"
    keys = project.ask(f"[a.key for a in client.read_artifacts(artifact_filter={filtered})]")
    assert {"mined-pairs", "mlflow-runs"} <= set(keys)


def test_a_wrong_override_is_a_failed_run_without_a_retry(project: Project) -> None:
    run = project.start("goal/mine", overrides=["stage2.speed=3"])
    assert project.wait(run) == "FAILED"
    message = project.ask(f"client.read_flow_run(UUID({run!r})).state.message")
    assert "expected section.field=value" in message


def test_nothing_to_promote_is_said(project: Project) -> None:
    run = project.start("goal/promote", reason="$(touch broken)")
    assert project.wait(run) == "FAILED"
    assert "promote: goal: " in project.ask(f"client.read_flow_run(UUID({run!r})).state.message")
    assert not (project.root / "broken").exists()


def test_cancel_ends_the_stage_and_the_next_run_can_start(project: Project) -> None:
    run = project.start("goal/mine", overrides=LONG)
    until = time.monotonic() + SECONDS
    while not project.processes("goal", "data"):
        assert time.monotonic() < until, (project.root / "run" / "worker.log").read_text()[-3000:]
        time.sleep(0.5)
    project.python("-m", "prefect", "flow-run", "cancel", run)
    assert project.wait(run) == "CANCELLED"
    until = time.monotonic() + 60
    while project.processes("dvc") + project.processes("goal", "data"):
        assert time.monotonic() < until, "the stage outlived its flow run"
        time.sleep(0.5)
    again = project.start("goal/mine", overrides=TINY)
    assert project.wait(again) == "COMPLETED"


def test_down_leaves_no_process(project: Project) -> None:
    project.python("-m", "infra.servers", "down")
    assert project.processes() == []
    assert (
        "not running"
        in subprocess.run(
            [sys.executable, "-m", "infra.servers", "status"],
            cwd=project.root,
            env=project.environment,
            capture_output=True,
            text=True,
            check=False,
        ).stderr
    )
    project.python("-m", "infra.servers", "down")
