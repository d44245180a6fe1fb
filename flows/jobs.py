"""The deployments goal/train, goal/evaluate, goal/mine, goal/promote; their types are the forms of the UI."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import pipeline

Preset = Annotated[str | None, Field(description="a file of presets/; empty: params.yaml as committed")]
Overrides = Annotated[list[str], Field(description="single values, as section.field=value")]
Hours = Annotated[float, Field(gt=0, description="longest time for one stage, in hours")]
Version = Annotated[int | None, Field(ge=1, description="a version's number; empty: the challenger")]
DryRun = Annotated[bool, Field(description="show the gates, change nothing")]
Reason = Annotated[str, Field(description="recorded on the version")]


@flow(name="goal", flow_run_name="train")
def train(preset: Preset = None, overrides: Overrides = (), stage_hours: Hours = 24.0) -> str:
    """The whole pipeline, to a registered model; the branch that holds parameters, dvc.lock and metrics."""
    return pipeline.walk(["report", "register"], preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="evaluate")
def evaluate(preset: Preset = None, overrides: Overrides = (), stage_hours: Hours = 24.0) -> str:
    """Every model on every benchmark, and the report."""
    return pipeline.walk(["report"], preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="mine")
def mine(preset: Preset = None, overrides: Overrides = (), stage_hours: Hours = 24.0) -> str:
    """Regions and pairs (LISM)."""
    return pipeline.walk(["pairs"], preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="promote")
def promote(version: Version = None, dry_run: DryRun = True, reason: Reason = "") -> None:
    """Hold a registered version to the gates of params.yaml; if all pass, make it the champion."""
    pipeline.promote(version, dry_run, reason)
