"""The deployments goal/train, goal/evaluate, goal/mine and goal/promote, with their forms in Prefect."""

from collections.abc import Callable
from typing import Annotated, Literal

from coolname.data import config as coolname_lists
from prefect import Flow, flow
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows import pipeline, watch
from flows.stage import StageError
from goal.config import presets
from goal.errors import UserError
from goal.runtime import signals

# The choices in the form are those at the time of `make up`, which deploys it.
Preset = Literal[*presets.names()]
Override = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*=")]
Hours = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=1)]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]

# Prefect names a run that its user did not name with two words of these lists.
WORDS = {word for words in coolname_lists.values() if words["type"] == "words" for word in words["words"]}
NAME_LENGTH = 100

ARGS = """

    Args:
        preset: its name, as for `goal use`; empty: params.yaml as committed
        overrides: single values, as section.field=value
        stage_hours: longest time for one stage

    Returns:
        The branch that holds parameters, dvc.lock and metrics.
"""


def _walks(function: Callable[..., str | State]) -> Flow:
    """A flow whose parameters are described once for all."""
    function.__doc__ += ARGS
    return flow(name="goal", flow_run_name=_named(function.__name__))(function)


def _named(kind: str) -> Callable[[], str]:
    """Gives the name of the flow run: its user's, else one that tells the runs of a page apart."""

    def name() -> str:
        if not set(flow_run.name.split("-")) <= WORDS:
            return flow_run.name
        given = flow_run.parameters
        chosen = [given.get("preset"), *(given.get("overrides") or ()), given.get("version")]
        text = " ".join([kind, *(str(one) for one in chosen if one)])
        return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}…"

    return name


@_walks
def train(
    preset: Preset | None = None, overrides: list[Override] = (), stage_hours: Hours = 24.0
) -> str | State:
    """The whole pipeline, to a registered model."""
    return _walk(["report", "register"], preset, overrides, stage_hours)


@_walks
def evaluate(
    preset: Preset | None = None, overrides: list[Override] = (), stage_hours: Hours = 24.0
) -> str | State:
    """Every model on every benchmark, and the report."""
    return _walk(["report"], preset, overrides, stage_hours)


@_walks
def mine(
    preset: Preset | None = None, overrides: list[Override] = (), stage_hours: Hours = 24.0
) -> str | State:
    """Regions and pairs (LISM)."""
    return _walk(["pairs"], preset, overrides, stage_hours)


def _walk(targets: list[str], preset: str | None, overrides: list[str], stage_hours: float) -> str | State:
    # Without its worker nobody could cancel this run, so it saves and ends with it.
    signals.die_with_parent()
    try:
        with watch.watched():
            return pipeline.walk(targets, preset, list(overrides), stage_hours)
    except (UserError, StageError) as error:
        # An end that is expected: one line, no traceback.
        return Failed(message=str(error))


@flow(name="goal", flow_run_name=_named("promote"))
def promote(
    version: Number | None = None,
    alias: Alias = "champion",
    dry_run: bool = True,
    new_data: bool = False,
    reason: str = "",
) -> State:
    """Check a registered version against the gates of the project's params.yaml; if all pass, set the alias.

    Args:
        version: its number; empty: the challenger
        alias: `champion`, or another one that you serve beside it
        dry_run: show the gates, change nothing
        new_data: the benchmark was changed on purpose: ignore the champion
        reason: recorded on the version
    """
    try:
        return Completed(message=pipeline.promote(version, alias, dry_run, new_data, reason))
    except StageError as error:
        # A dry run that tells why a version would be refused has done what it was asked to do.
        found = dry_run and pipeline.DRY_RUN in str(error)
        return (Completed if found else Failed)(message=str(error))
