"""The real servers and a real worker in a copy of the project: deployments, faults, lost servers, down."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import requests
from mlflow import MlflowClient

from benchmarks.live import TINY, Project, serving
from infra import processes
from infra.servers import SERVERS
from tests.servers import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FLOWS = ("train", "evaluate", "mine", "promote")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with serving(tmp_path_factory.mktemp("live")) as made:
        yield made


def test_up_again_changes_nothing(project: Project) -> None:
    before = [project.pid(server) for server in SERVERS]
    printed = project.up()
    assert printed == project.say(sys.executable, "-m", "infra.servers", "ui")
    assert [project.pid(server) for server in SERVERS] == before
    assert {process.pid for process in project.processes()} >= set(before)
    assert all("127.0.0.1" in address for address in printed.splitlines()[:2])
    listening = [
        connection
        for process in project.processes()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_the_server_has_the_queue_and_the_rule_for_dead_runs(project: Project) -> None:
    assert project.api("work_pools/goal/queues/gpu")["concurrency_limit"] == 1
    queues = {name: project.api(f"deployments/name/goal/{name}")["work_queue_name"] for name in FLOWS}
    assert queues == {"train": "gpu", "evaluate": "gpu", "mine": "gpu", "promote": "default"}
    (automation,) = project.api("automations/filter", limit=10)
    assert automation["enabled"]
    assert automation["actions"][0]["state"] == "CRASHED"


@pytest.mark.parametrize("name", ["train", "evaluate", "mine"])
def test_the_parameters_are_a_form(project: Project, name: str) -> None:
    schema = project.api(f"deployments/name/goal/{name}")["parameter_openapi_schema"]["properties"]
    assert {"preset", "overrides", "stage_hours"} == set(schema)
    choices = next(choice["enum"] for choice in schema["preset"]["anyOf"] if "enum" in choice)
    assert choices == sorted(path.stem for path in (project.root / "presets").glob("*.yaml"))
    assert schema["overrides"]["type"] == "array"
    assert schema["stage_hours"]["exclusiveMinimum"] == 0
    assert "section.field=value" in schema["overrides"]["description"]


def test_the_form_of_a_promotion_has_its_target(project: Project) -> None:
    schema = project.api("deployments/name/goal/promote")["parameter_openapi_schema"]["properties"]
    assert {"version", "alias", "dry_run", "new_data", "reason"} == set(schema)
    assert schema["alias"]["default"] == "champion"
    assert all(field["description"] for field in schema.values())


def test_a_deployment_mines_pairs_and_leaves_the_checkout_alone(project: Project) -> None:
    head = project.git("rev-parse", "HEAD")
    run = project.start("goal/mine", overrides=TINY)
    assert project.ended(run) == "COMPLETED", project.worker_log()
    assert project.git("status", "--porcelain") == ""
    assert project.git("rev-parse", "HEAD") == head
    branch = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads/runs").strip()
    assert "pairs:" in project.git("show", f"{branch}:dvc.lock")
    assert {"mined-pairs", "contact-sheet", "mlflow-runs", "stages"} <= set(project.artifacts(run))
    assert "Running stage 'pairs'" in project.logged(run), "the stage's output is on the page"


@pytest.mark.parametrize(
    "given", ["stage_hours=-1", 'preset="absent"', 'overrides=["seed"]', "overrides=[7]"]
)
def test_an_invalid_parameter_starts_no_run(project: Project, given: str) -> None:
    printed = project.run("prefect", "deployment", "run", "goal/train", "--param", given)
    assert printed.returncode == 1
    assert given.split("=")[0] in printed.stdout + printed.stderr
    assert "Traceback" not in printed.stdout + printed.stderr


def test_two_runs_never_use_the_gpu_at_once(project: Project) -> None:
    """The second one waits in the queue, without a process."""
    runs = [project.start("goal/mine", overrides=[*TINY, f"seed={seed}"]) for seed in (11, 12)]
    assert [project.ended(run) for run in runs] == ["COMPLETED", "COMPLETED"], project.worker_log()
    first, second = sorted(map(project.stages, runs))
    assert first[1] <= second[0], "the first run's last stage ended before the second one's first began"


def test_a_wrong_override_is_a_failed_run_without_a_retry(project: Project) -> None:
    run = project.start("goal/mine", overrides=["stage2.speed=3"])
    assert project.ended(run) == "FAILED"
    assert "expected section.field=value" in project.state(run)["message"]


def test_a_schedule_makes_runs(project: Project) -> None:
    project.say("prefect", "deployment", "schedule", "create", "goal/promote", "--cron", "0 3 * * *")
    of = {"id": {"any_": [project.api("deployments/name/goal/promote")["id"]]}}
    planned = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    project.until(lambda: project.api("flow_runs/filter", deployments=of, flow_runs=planned), "none planned")
    project.say("prefect", "--no-prompt", "deployment", "schedule", "clear", "goal/promote", "--accept-yes")


def test_nothing_to_promote_is_reported(project: Project) -> None:
    run = project.start("goal/promote", reason="$(touch broken)")
    assert project.ended(run) == "FAILED"
    assert "promote: goal: " in project.state(run)["message"]
    assert not (project.root / "broken").exists()


def test_servers_killed_in_the_middle_of_a_run_do_not_end_it(project: Project) -> None:
    """Prefect's and MLflow's server; `make up` starts them again while the run goes on."""
    run = project.start("goal/mine", overrides=[*TINY, "data.scenes.train=600", "seed=2"])
    project.until(lambda: project.processes("goal", "data"), "no stage began")
    worker = project.pid("worker")
    for server in ("prefect", "mlflow"):
        os.kill(project.pid(server), signal.SIGKILL)
    project.up()
    assert project.pid("worker") == worker
    assert project.ended(run) == "COMPLETED", project.worker_log()
    again = project.start("goal/mine", overrides=TINY)
    assert project.ended(again) == "COMPLETED", "the lost server still holds the GPU's slot in the queue"


def test_a_failed_start_does_not_stop_what_was_running(project: Project) -> None:
    kept = {name: project.pid(name) for name in ("prefect", "worker")}
    number = int(project.mlflow.rsplit(":", 1)[1])
    for process in project.processes(of="mlflow"):
        process.kill()
    until(lambda: processes.port("127.0.0.1", number) == number)
    with socket.create_server(("127.0.0.1", number)):
        failed = project.run(sys.executable, "-m", "infra.servers", "up")
        assert failed.returncode
        assert "goal: mlflow did not start; its log: " in failed.stderr
        assert "mlflow" in project.say(sys.executable, "-m", "infra.servers", "ui").lower()
    assert {name: project.pid(name) for name in kept} == kept
    assert all(project.processes(of=name) for name in kept)
    project.up()
    assert {name: project.pid(name) for name in kept} == kept


def test_ui_reports_a_dead_worker_and_starts_nothing(project: Project) -> None:
    os.kill(project.pid("worker"), signal.SIGKILL)
    until(lambda: not project.processes(of="worker"))
    before = {process.pid for process in project.processes()}
    printed = project.say(sys.executable, "-m", "infra.servers", "ui")
    assert "Worker   not running; `make up` starts it" in printed
    assert {process.pid for process in project.processes()} == before


def test_down_leaves_no_process_and_ui_then_shows_the_store(project: Project) -> None:
    MlflowClient(project.mlflow).create_experiment("kept")
    project.say(sys.executable, "-m", "infra.servers", "down")
    assert project.processes() == []
    project.say(sys.executable, "-m", "infra.servers", "down")
    page = subprocess.Popen(
        [sys.executable, "-m", "infra.servers", "ui"],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        address = page.stdout.readline().split()[1]
        until(lambda: _experiments(address) is not None)
        assert "kept" in _experiments(address)
    finally:
        page.send_signal(signal.SIGINT)
        page.wait(60)


def _experiments(address: str) -> list[str] | None:
    asked = {"max_results": 10}
    try:
        found = requests.post(f"{address}/api/2.0/mlflow/experiments/search", json=asked, timeout=60)
    except requests.ConnectionError:
        return None
    return [experiment["name"] for experiment in found.json()["experiments"]]


def test_of_two_starts_at_once_the_second_waits(project: Project) -> None:
    starts = [
        subprocess.Popen(
            [sys.executable, "-m", "infra.servers", "up"],
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    first, second = (start.communicate(timeout=600)[0] for start in starts)
    assert [start.returncode for start in starts] == [0, 0]
    assert first == second
    assert len(project.processes("worker", "start")) == 1
