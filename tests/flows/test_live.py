"""The real servers and a real worker in a copy of the project: deployments, faults, lost servers, down."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.flows.live import TINY, Project, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with serving(tmp_path_factory.mktemp("live")) as made:
        yield made


def test_up_again_changes_nothing(project: Project) -> None:
    before = {process.pid for process in project.processes()}
    told = project.up()
    assert told == project.say(sys.executable, "-m", "infra.servers", "status")
    assert {process.pid for process in project.processes()} == before
    assert all("127.0.0.1" in address for address in told.splitlines()[:2])
    listening = [
        connection
        for process in project.processes()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_the_server_knows_deployments_limit_and_what_to_do_with_dead_runs(project: Project) -> None:
    told = project.say("prefect", "deployment", "ls")
    assert [name for name in ("train", "evaluate", "mine", "promote") if f"goal/{name}" not in told] == []
    assert project.api("v2/concurrency_limits/gpu")["limit"] == 1
    (automation,) = project.api("automations/filter", limit=10)
    assert automation["enabled"]
    assert automation["actions"][0]["state"] == "CRASHED"


def test_the_parameters_are_a_form(project: Project) -> None:
    schema = project.api("deployments/name/goal/train")["parameter_openapi_schema"]["properties"]
    assert {"preset", "overrides", "stage_hours"} == set(schema)
    assert schema["overrides"]["type"] == "array"
    assert schema["stage_hours"]["exclusiveMinimum"] == 0
    assert "section.field=value" in schema["overrides"]["description"]


def test_a_deployment_mines_pairs_and_leaves_the_checkout_alone(project: Project) -> None:
    head = project.git("rev-parse", "HEAD")
    run = project.start("goal/mine", overrides=TINY)
    assert project.ended(run) == "COMPLETED", project.worker_log()
    assert project.git("status", "--porcelain") == ""
    assert project.git("rev-parse", "HEAD") == head
    branch = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads/runs").strip()
    assert "pairs:" in project.git("show", f"{branch}:dvc.lock")
    assert {"mined-pairs", "contact-sheet", "mlflow-runs", "stages"} <= set(project.artifacts(run))
    assert "Running stage 'pairs'" in project.logged(run), "the stage's words are on the page"


def test_a_parameter_of_the_wrong_type_starts_no_run(project: Project) -> None:
    told = project.run("prefect", "deployment", "run", "goal/train", "--param", "stage_hours=-1")
    assert told.returncode == 1
    assert "stage_hours" in told.stdout + told.stderr
    assert "Traceback" not in told.stdout + told.stderr


def test_a_wrong_override_is_a_failed_run_without_a_retry(project: Project) -> None:
    run = project.start("goal/mine", overrides=["stage2.speed=3"])
    assert project.ended(run) == "FAILED"
    assert "expected section.field=value" in project.state(run)["message"]


def test_nothing_to_promote_is_said(project: Project) -> None:
    run = project.start("goal/promote", reason="$(touch broken)")
    assert project.ended(run) == "FAILED"
    assert "promote: goal: " in project.state(run)["message"]
    assert not (project.root / "broken").exists()


def test_servers_that_were_killed_in_the_middle_of_a_run_do_not_end_it(project: Project) -> None:
    """Prefect's and MLflow's; `make up` starts them again beside the run."""
    run = project.start("goal/mine", overrides=[*TINY, "data.scenes.train=600", "seed=2"])
    project.until(lambda: project.processes("goal", "data"), "no stage began")
    worker = project.pid("worker")
    for server in ("prefect", "mlflow"):
        os.kill(project.pid(server), signal.SIGKILL)
    project.up()
    assert project.pid("worker") == worker
    assert project.ended(run) == "COMPLETED", project.worker_log()


def test_down_leaves_no_process(project: Project) -> None:
    project.say(sys.executable, "-m", "infra.servers", "down")
    assert project.processes() == []
    status: subprocess.CompletedProcess = project.run(sys.executable, "-m", "infra.servers", "status")
    assert "not running; `make up` starts them" in status.stderr
    project.say(sys.executable, "-m", "infra.servers", "down")
