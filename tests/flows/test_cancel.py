"""A training that is cancelled or loses its worker: it saves, cleans up, and the next run resumes it."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks.live import Project, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TIMES = 10
AWAY = 120.0  # seconds; a run without a heartbeat is marked as crashed after 90


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with serving(tmp_path_factory.mktemp("cancel")) as made:
        yield made


def tidy(project: Project) -> None:
    """The user's files are as they were, and DVC has no lock in the project or in the run's checkout."""
    assert project.git("status", "--porcelain") == ""
    for root in (project.root, *(project.root / ".dvc" / "tmp" / "flows").glob("*/")):
        project.say("dvc", "--cd", str(root), "checkout", "--allow-missing")


@pytest.mark.parametrize("number", range(TIMES))
def test_a_cancelled_training_saves_and_the_next_one_resumes(project: Project, number: int) -> None:
    run = project.training()
    if number:
        assert "resuming after step" in project.logged(run)
    project.cancelled(run)
    assert project.ended(run) == "CANCELLED"
    tidy(project)


def test_a_worker_killed_with_9_is_noticed_and_the_next_run_resumes(project: Project) -> None:
    run = project.training()
    os.kill(project.pid("worker"), signal.SIGKILL)
    assert project.ended(run) == "CRASHED"
    project.until(project.idle, "the stage outlived its worker")
    tidy(project)
    project.up()
    again = project.training()
    assert "resuming after step" in project.logged(again)
    project.cancelled(again)


def test_a_training_survives_minutes_without_prefect(project: Project) -> None:
    run = project.training()
    for process in project.processes(of="prefect"):
        process.kill()
    time.sleep(AWAY)
    project.up()
    back = project.steps(run)
    # Longer than the time after which a run without a heartbeat is marked as crashed.
    time.sleep(AWAY)
    assert project.state(run)["type"] == "RUNNING", project.state(run)
    assert project.steps(run) > back, "its log goes on"
    # The worker, which lost the server, no longer gets cancellations: the run ends itself.
    project.cancelled(run)
    assert project.ended(run) in {"CANCELLED", "CRASHED"}
    assert "goal: stage1: saved after step" in project.logged(run)
    tidy(project)


def test_all_processes_killed_with_9_are_noticed_and_the_next_run_resumes(project: Project) -> None:
    """As if the machine were lost: only the missing heartbeats show it."""
    run = project.training()
    for process in project.processes(of="worker"):
        process.kill()
    assert project.ended(run) == "CRASHED"
    assert "no heartbeat" in project.state(run)["message"]
    project.up()
    again = project.training()
    assert "resuming after step" in project.logged(again)
    project.cancelled(again)
    tidy(project)
