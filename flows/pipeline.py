"""Walk DVC's graph, one Prefect task a stage, and put what came out on the run's page."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.states import Completed, State

from flows import checkout, graph, stage

HOME = Path(__file__).parents[1]
GPU = "gpu"
# Stages that hold the accelerator; the others may run beside them.
ON_GPU = {"regions", "pairs", "train", "evaluate"}
RETRIES = 3
BACK_OFF_SECONDS = [10, 60, 300]


def _may_pass(_task: object, _run: object, state: State) -> bool:
    return isinstance(state.result(raise_on_failure=False), stage.TransientError)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=BACK_OFF_SECONDS,
    retry_condition_fn=_may_pass,
)
def run_stage(name: str, root: Path, limit_seconds: float) -> State:
    """One DVC stage; a stage that DVC skips ends as `Skipped`."""
    log = get_run_logger().info
    if name.partition("@")[0] in ON_GPU:
        with concurrency(GPU, occupy=1):
            ran = stage.run(root, name, log, limit_seconds)
    else:
        ran = stage.run(root, name, log, limit_seconds)
    return Completed(name="Completed" if ran else "Skipped", message=name)


def walk(targets: list[str], preset: str | None, overrides: list[str], stage_hours: float) -> str:
    """Run what `targets` need in a checkout of its own; the branch that holds the result."""
    root = checkout.prepare(HOME, preset, overrides)
    get_run_logger().info("checkout %s of %s", root.name, HOME.name)
    for name in graph.stages(root, targets):
        run_stage(name, root, stage_hours * 3600)
    branch = checkout.keep(root, f"goal: {', '.join(targets)} ({root.name})")
    _show(root)
    checkout.drop(HOME, root)
    return branch


def _show(root: Path) -> None:
    table = root / "reports" / "table.md"
    if table.exists():
        create_markdown_artifact(
            table.read_text(), key="benchmark-table", description="Recall of every model"
        )
