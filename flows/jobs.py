"""The deployments goal/train, goal/evaluate, goal/mine, goal/promote and their forms on Prefect's page."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import pipeline

Hours = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=1)]


@flow(name="goal", flow_run_name="train")
def train(preset: str | None = None, overrides: list[str] = (), stage_hours: Hours = 24.0) -> str:
    """The whole pipeline, to a registered model.

    Args:
        preset: a file of presets/, without .yaml; empty: params.yaml as committed
        overrides: single values, as section.field=value
        stage_hours: longest time for one stage

    Returns:
        The branch that holds parameters, dvc.lock and metrics.
    """
    return pipeline.walk(["report", "register"], preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="evaluate")
def evaluate(preset: str | None = None, overrides: list[str] = (), stage_hours: Hours = 24.0) -> str:
    """Every model on every benchmark, and the report.

    Args:
        preset: a file of presets/, without .yaml; empty: params.yaml as committed
        overrides: single values, as section.field=value
        stage_hours: longest time for one stage
    """
    return pipeline.walk(["report"], preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="mine")
def mine(preset: str | None = None, overrides: list[str] = (), stage_hours: Hours = 24.0) -> str:
    """Regions and pairs (LISM).

    Args:
        preset: a file of presets/, without .yaml; empty: params.yaml as committed
        overrides: single values, as section.field=value
        stage_hours: longest time for one stage
    """
    return pipeline.walk(["pairs"], preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="promote")
def promote(version: Number | None = None, dry_run: bool = True, reason: str = "") -> None:
    """Hold a registered version to the gates of params.yaml; if all pass, make it the champion.

    Args:
        version: its number; empty: the challenger
        dry_run: show the gates, change nothing
        reason: recorded on the version
    """
    pipeline.promote(version, dry_run, reason)
