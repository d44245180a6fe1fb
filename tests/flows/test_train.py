"""`prefect deployment run goal/train` up to a registered version; its pages in a real browser."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from playwright.sync_api import Page

from benchmarks.live import TINY, Project, serving
from goal.config import paths
from goal.tracking import registry
from tests.browser import chromium
from tests.imports import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# Axes to add to the plot, as in docs/experiments.md: a parameter, and a second metric beside the one that
# MLflow chooses by itself.
AXES = ("stage2.lr", "test/image_to_text_r1")
SCREENSHOTS = ROOT / "run" / "screenshots"  # git-ignored; for a person to look at


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with serving(tmp_path_factory.mktemp("train")) as made:
        yield made


@pytest.fixture(scope="module")
def run(project: Project) -> str:
    """A flow run of the whole pipeline."""
    started = project.start("goal/train", overrides=TINY)
    assert project.ended(started) == "COMPLETED", project.logged(started)[-3000:]
    return started


@pytest.fixture(scope="module")
def version(project: Project, run: str) -> ModelVersion:
    return MlflowClient(project.mlflow, project.mlflow).get_model_version_by_alias("goal", "challenger")


def test_the_page_of_the_run_shows_and_links_the_result(
    project: Project, run: str, version: ModelVersion
) -> None:
    shown = project.artifacts(run)
    assert "| stage2 |" in shown["benchmark-table"]
    assert all(shown[key].startswith("data:image/png;base64,") for key in ("loss-curve", "contact-sheet"))
    assert float(shown["stages"]) == 100
    assert f"{project.mlflow}/#/models/goal/versions/{version.version}" in shown["mlflow-version"]
    assert f"/runs/{version.run_id}?workflowType=machine_learning)" in shown["mlflow-run"]


def test_the_version_comes_from_the_branch_of_the_run(
    project: Project, run: str, version: ModelVersion
) -> None:
    branch = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads/runs").strip()
    client = MlflowClient(project.mlflow, project.mlflow)
    facts = registry.facts(version, registry.fetch(client, version, Path(tempfile.mkdtemp())))
    assert (facts["goal.branch"], facts["goal.flow_run"]) == (branch, run)
    assert version.tags["goal.model"] in project.git("show", f"{branch}:metrics/registered.json")
    assert project.git("status", "--porcelain") == ""
    assert not list((project.root / ".dvc" / "tmp" / "flows").glob("*/"))


def test_the_same_again_skips_every_stage_and_makes_no_version(
    project: Project, run: str, version: ModelVersion
) -> None:
    again = project.start("goal/train", overrides=TINY)
    assert project.ended(again) == "COMPLETED"
    tasks = project.api("task_runs/filter", flow_runs={"id": {"any_": [again]}})
    ran = {task["name"]: task["state"]["name"] for task in tasks}
    assert ran.pop("code") == "Completed", "it lists the code by which DVC sees what is stale"
    assert ran.pop("register") == "Completed", "it looks itself whether the registry has the version"
    assert set(ran.values()) == {"Skipped"}
    assert project.artifacts(again)["mlflow-version"] == project.artifacts(run)["mlflow-version"]


def test_promotion_shows_its_gates_and_the_reason(project: Project, run: str) -> None:
    dry = project.start("goal/promote")
    assert project.ended(dry) == "COMPLETED", "a dry run that found its answer has done its work"
    shown = project.artifacts(dry)["gates"]
    assert "minimum 25" in shown


def test_the_pages_in_a_browser(project: Project, run: str, version: ModelVersion) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1800})
        page.set_default_timeout(120_000)

        page.goto(project.prefect)
        page.get_by_placeholder("admin:pass").fill(":".join(project.password))
        page.get_by_role("button", name="Login").click()
        page.wait_for_url("**/dashboard**")
        form = project.api("deployments/name/goal/train")["id"]
        page.goto(f"{project.prefect}/deployments/deployment/{form}/run")
        page.get_by_text("single values, as section.field=value").wait_for()
        _keep(page, "prefect-form")
        page.goto(f"{project.prefect}/runs/flow-run/{run}")
        page.get_by_text("Artifacts", exact=True).first.click()
        for words in ("benchmark-table", "contact-sheet", "loss-curve", "mlflow-version"):
            page.get_by_text(words, exact=False).first.wait_for()
        _keep(page, "prefect-run")
        page.get_by_text("loss-curve").first.click()
        page.locator("img[src^='data:image/png']").first.wait_for()
        _keep(page, "prefect-loss-curve")

        page.goto(f"{project.mlflow}/#/models/goal")
        page.get_by_text("challenger").first.wait_for()
        page.get_by_role("button", name="Close").click()  # of MLflow's assistant
        _keep(page, "mlflow-model")
        page.goto(f"{project.mlflow}/#/models/goal/versions/{version.version}")
        page.get_by_text("goal.model").first.wait_for()
        _keep(page, "mlflow-version")

        runs, experiment = _runs(project)
        page.goto(f"{project.mlflow}/#/compare-runs?runs={quote(runs)}&experiments={quote(experiment)}")
        page.get_by_text("Parallel Coordinates Plot").first.wait_for()
        for box, axis in zip(page.get_by_role("combobox").all(), AXES, strict=True):
            box.click()
            page.keyboard.type(axis)
            page.get_by_role("option", name=axis, exact=True).wait_for(state="attached")
            page.keyboard.press("Enter")
            page.keyboard.press("Escape")
        for axis in (*AXES, "test/text_to_image_r1"):
            page.locator(".parcoords").get_by_text(axis, exact=True).wait_for()
        _keep(page, "mlflow-parallel-coordinates")


def _runs(project: Project) -> tuple[str, str]:
    """The runs of all models and their experiment, as in the URL of MLflow's comparison."""
    client = MlflowClient(project.mlflow, project.mlflow)
    experiment = client.get_experiment_by_name("goal").experiment_id
    found = client.search_runs([experiment])
    assert {run.data.tags["goal.name"] for run in found} == set(paths.MODELS)
    return json.dumps([run.info.run_id for run in found]), json.dumps([experiment])


def _keep(page: Page, name: str) -> Path:
    file = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=file, full_page=True)
    assert file.stat().st_size > 20_000, "an empty page"
    return file
