"""The servers of `make up` without a run: deployments, passwords, other pages in the user's browser."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.live import Project, serving


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with serving(tmp_path_factory.mktemp("smoke")) as made:
        yield made


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


def test_ui_says_what_a_shell_with_a_proxy_needs(project: Project) -> None:
    words = "This shell uses a proxy"
    command = (sys.executable, "-m", "infra.servers", "ui")
    assert words not in project.say(*command)
    del project.environment["NO_PROXY"]
    assert words in project.say(*command)
    project.environment["NO_PROXY"] = project.exports["NO_PROXY"]
