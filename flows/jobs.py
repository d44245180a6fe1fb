"""The deployments goal/train, goal/evaluate, goal/mine and goal/promote, with their forms in Prefect."""

from collections.abc import Callable
from typing import Annotated, Literal

from prefect import Flow, flow
from pydantic import Field

from flows import pipeline, watch
from goal.runtime import signals

# The choices in the form are those at the time of `make up`, which deploys it.
Preset = Literal[*sorted(path.stem for path in (pipeline.HOME / "presets").glob("*.yaml"))]
Override = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*=")]
Hours = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=1)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]

ARGS = """

    Args:
        preset: a file of presets/, without .yaml; empty: params.yaml as committed
        overrides: single values, as section.field=value
        stage_hours: longest time for one stage

    Returns:
        The branch that holds parameters, dvc.lock and metrics.
"""


def _walks(function: Callable[..., str]) -> Flow:
    """A flow whose parameters are described once for all."""
    function.__doc__ += ARGS
    return flow(name="goal", flow_run_name=function.__name__)(function)


@_walks
def train(preset: Preset | None = None, overrides: list[Override] = (), stage_hours: Hours = 24.0) -> str:
    """The whole pipeline, to a registered model."""
    return _walk(["report", "register"], preset, overrides, stage_hours)


@_walks
def evaluate(preset: Preset | None = None, overrides: list[Override] = (), stage_hours: Hours = 24.0) -> str:
    """Every model on every benchmark, and the report."""
    return _walk(["report"], preset, overrides, stage_hours)


@_walks
def mine(preset: Preset | None = None, overrides: list[Override] = (), stage_hours: Hours = 24.0) -> str:
    """Regions and pairs (LISM)."""
    return _walk(["pairs"], preset, overrides, stage_hours)


def _walk(targets: list[str], preset: str | None, overrides: list[str], stage_hours: float) -> str:
    # Without its worker nobody could cancel this run, so it saves and ends with it.
    signals.die_with_parent()
    with watch.watched():
        return pipeline.walk(targets, preset, list(overrides), stage_hours)


@flow(name="goal", flow_run_name="promote")
def promote(
    version: Number | None = None,
    alias: Alias = "champion",
    dry_run: bool = True,
    new_data: bool = False,
    reason: str = "",
) -> None:
    """Check a registered version against the gates of the project's params.yaml; if all pass, set the alias.

    Args:
        version: its number; empty: the challenger
        alias: `champion`, or another one that you serve beside it
        dry_run: show the gates, change nothing
        new_data: the benchmark was changed on purpose: ignore the champion
        reason: recorded on the version
    """
    pipeline.promote(version, alias, dry_run, new_data, reason)
