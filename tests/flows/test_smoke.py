"""The servers of `make up`: deployments, passwords, other pages in the user's browser, alerts, webhooks."""

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from benchmarks.live import Project, serving
from tests import documents
from tests.browser import chromium, page
from tests.servers import Receiver, receiving, until


@pytest.fixture(scope="module")
def alerts() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, alerts: Receiver) -> Iterator[Project]:
    with serving(tmp_path_factory.mktemp("smoke"), GOAL_ALERT_URL=alerts.address) as made:
        yield made


def test_up_returns_once_the_worker_works(project: Project) -> None:
    (worker,) = project.api("work_pools/goal/workers/filter", limit=10)
    assert worker["name"] == "local"
    assert worker["last_heartbeat_time"]


def test_prefect_lists_the_deployments_in_the_folder_and_elsewhere(project: Project, tmp_path: Path) -> None:
    """With the command a user types; with a too new fastapi the server responds with 422."""
    printed = project.say("prefect", "deployment", "ls")
    assert [name for name in ("train", "evaluate", "mine", "promote") if f"goal/{name}" not in printed] == []
    elsewhere = subprocess.run(
        ["prefect", "deployment", "ls"],
        cwd=tmp_path,
        env=project.environment | project.exports,
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout == printed


def test_requests_without_the_password_are_refused(project: Project) -> None:
    """Whoever may write to Prefect's API can have the worker run anything."""
    address = f"{project.prefect}/api/flows/filter"
    assert requests.post(address, json={}, timeout=60).status_code == 401
    assert requests.post(address, json={}, auth=("goal", "goal"), timeout=60).status_code == 401
    assert requests.post(address, json={}, auth=project.password, timeout=60).status_code == 200
    assert (project.root / "run" / "profiles.toml").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_other_pages_in_the_browser_cannot_use_prefect(project: Project, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked = requests.options(f"{project.prefect}/api/flows/filter", headers=headers, timeout=60)
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_other_pages_in_the_browser_cannot_use_mlflow(project: Project, origin: str) -> None:
    address = f"{project.mlflow}/api/2.0/mlflow/experiments/create"
    made = requests.post(address, json={"name": "theirs"}, headers={"Origin": origin}, timeout=60)
    assert made.status_code == 403


def test_mlflow_s_assistant_runs_no_shell_on_this_machine(project: Project) -> None:
    asked = "from mlflow.assistant.providers import base; print(base.assistant_sandbox_enabled())"
    settings = project.processes("server", of="mlflow")[0].environ()
    for environment, boxed in ((settings, "True"), (project.environment, "False")):
        printed = subprocess.run(
            [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
        )
        assert printed.stdout.split()[-1] == boxed


def test_its_own_page_works_under_both_host_names(project: Project) -> None:
    for own in (project.prefect, project.prefect.replace("127.0.0.1", "localhost")):
        headers = {"Origin": own, "Access-Control-Request-Method": "POST"}
        asked = requests.options(f"{project.prefect}/api/flows/filter", headers=headers, timeout=60)
        assert asked.headers["access-control-allow-origin"] == own


def test_ui_prints_what_runs(project: Project) -> None:
    printed = project.say(sys.executable, "-m", "infra.servers", "ui")
    assert project.mlflow in printed
    assert project.prefect in printed
    assert ":".join(project.password) in printed
    assert "not running" not in printed


def test_ui_leads_to_the_runs_and_not_to_mlflow_s_pages_for_language_models(project: Project) -> None:
    words = (sys.executable, "-m", "infra.servers", "ui")
    assert "Runs" not in project.say(*words), "before the first run"
    client = MlflowClient(project.mlflow)
    run = client.create_run(client.create_experiment("goal"), run_name="stage1")
    client.set_terminated(run.info.run_id)
    (link,) = (line.split()[1] for line in project.say(*words).splitlines() if line.startswith("Runs"))
    with chromium() as browser, page(browser, project.mlflow) as (opened, _):
        opened.goto(link)
        opened.get_by_role("link", name="stage1").first.wait_for()
        # A part of the navigation that the pages for language models lack.
        opened.get_by_text("Model registry").first.wait_for()


def test_ui_says_what_a_shell_with_a_proxy_needs(project: Project) -> None:
    words = "This shell uses a proxy"
    command = (sys.executable, "-m", "infra.servers", "ui")
    assert words not in project.say(*command)
    del project.environment["NO_PROXY"]
    assert words in project.say(*command)
    project.environment["NO_PROXY"] = project.exports["NO_PROXY"]


def run_of(project: Project, deployment: str) -> str:
    """A run that no worker starts; without a deployment, one of somebody else on a shared server."""
    given = {"flow_id": project.api("flows/name/goal")["id"], "state": {"type": "PENDING"}}
    if deployment:
        given["deployment_id"] = project.api(f"deployments/name/goal/{deployment}")["id"]
    return project.api("flow_runs/", **given, name=f"a run of {deployment or 'others'}")["id"]


def test_failed_crashed_and_late_runs_of_this_project_are_told(project: Project, alerts: Receiver) -> None:
    failed = project.start("goal/mine", overrides=["stage2.speed=3"])
    states = {"CRASHED": "Crashed", "SCHEDULED": "Late", "FAILED": "Failed", "COMPLETED": "Completed"}
    for deployment in ("", "train"):
        for kind, name in states.items():
            state = {"type": kind, "name": name, "message": 'its "last" words'}
            run = run_of(project, deployment)
            project.api(f"flow_runs/{run}/set_state", state=state, force=True)
    assert project.ended(failed) == "FAILED"
    until(lambda: len(alerts.got) >= 4)
    # An alert that should not be would come before this one, which is asked for after it.
    last = run_of(project, "promote")
    project.api(f"flow_runs/{last}/set_state", state={"type": "FAILED", "message": "the last"}, force=True)
    until(lambda: any("the last" in body["text"] for body in alerts.bodies()))
    told = sorted(body["text"].splitlines() for body in alerts.bodies())
    assert [lines[0] for lines in told] == [
        "a run of promote: Failed",
        "a run of train: Crashed",
        "a run of train: Failed",
        "a run of train: Late",
        "mine stage2.speed=3: Failed",
    ]
    assert all(lines[1] == 'its "last" words' for lines in told[1:4])
    assert "expected section.field=value with a field of params.yaml" in told[4][1]
    assert told[4][2] == f"{project.prefect}/runs/flow-run/{failed}"


def rules(project: Project) -> dict[str, dict]:
    return {rule["name"]: rule for rule in project.api("automations/filter", limit=10)}


def start_the_worker_again(project: Project) -> None:
    given = f"PREFECT_PROFILES_PATH={project.root / 'run' / 'profiles.toml'}", f"GOAL_HOME={project.root}"
    project.say("env", *given, sys.executable, "-m", "flows.pool")


def test_rules_stay_when_the_worker_starts_again_unless_they_differ(project: Project) -> None:
    """An update would forget the runs whose heartbeats the server waits for."""
    before = rules(project)
    assert set(before) == {"goal: dead flow runs", "goal: alerts"}
    start_the_worker_again(project)
    assert rules(project) == before
    # As earlier versions made it: for every flow of a shared server; and somebody has switched it off.
    older = {key: before["goal: dead flow runs"][key] for key in ("name", "trigger", "actions")}
    older |= {"enabled": False, "trigger": {**older["trigger"], "match_related": {}}}
    address = f"{project.prefect}/api/automations/{before['goal: dead flow runs']['id']}"
    requests.put(address, json=older, auth=project.password, timeout=60).raise_for_status()
    start_the_worker_again(project)
    after = rules(project)
    assert after["goal: alerts"] == before["goal: alerts"]
    rule = after["goal: dead flow runs"]
    assert not rule["enabled"]
    wanted = before["goal: dead flow runs"]["trigger"]["match_related"]
    assert rule["trigger"]["match_related"] == wanted
    assert len(wanted["prefect.resource.id"]) == 4


def test_mlflow_tells_a_program_of_a_new_champion(project: Project) -> None:
    (command,) = documents.commands("serving.md", "create_webhook")
    client = MlflowClient(project.mlflow)
    client.create_registered_model("goal")
    run = client.create_run(client.create_experiment("of a version"))
    client.create_model_version("goal", run.info.artifact_uri, run.info.run_id)
    with receiving() as server:
        command = command.replace("http://127.0.0.1:8000/reload", server.address)
        project.say("env", f"MLFLOW_TRACKING_URI={project.mlflow}", "bash", "-c", command)
        client.set_registered_model_alias("goal", "champion", "1")
        until(lambda: server.got)
    ((header, body),) = server.got
    assert json.loads(body)["data"] == {"name": "goal", "alias": "champion", "version": "1"}
    signed = f"{header['X-MLflow-Delivery-Id']}.{header['X-MLflow-Timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.digest(b"a long secret", signed, hashlib.sha256)).decode()
    assert header["X-MLflow-Signature"] == f"v1,{wanted}"
