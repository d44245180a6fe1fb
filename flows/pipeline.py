"""Walk DVC's graph, one Prefect task a stage; promote behind the gates."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.states import Completed, State

from flows import checkout, graph, page, stage
from flows.pool import GPU
from goal import interrupts

HOME = Path(__file__).parents[1]
RETRIES = 3
BACK_OFF_SECONDS = [10, 60, 300]
PROMOTE_SECONDS = 3600.0


def _may_pass(_task: object, _run: object, state: State) -> bool:
    return isinstance(state.result(raise_on_failure=False), stage.TransientError)


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=BACK_OFF_SECONDS,
    retry_condition_fn=_may_pass,
)
def run_stage(name: str, root: Path, limit_seconds: float, stale: bool) -> State:
    """One DVC stage; a stage that is not stale, or that DVC skips, ends as `Skipped`."""
    ran = stale and stage.run(root, name, get_run_logger().info, limit_seconds)
    return Completed(name="Completed" if ran else "Skipped", message=name)


def walk(targets: list[str], preset: str | None, overrides: list[str], stage_hours: float) -> str:
    """Run what `targets` need in a checkout of its own; the branch that holds the result.

    A run that fails or is cancelled leaves its checkout, where the next one with the same parameters goes on.
    """
    # Nobody but its worker could cancel this run: without it, the run saves and ends too.
    interrupts.die_with_parent()
    root = checkout.prepare(HOME, preset, overrides)
    get_run_logger().info("checkout %s of %s", root.name, HOME.name)
    # Once for all stages: to take and give back the limit costs seconds.
    with checkout.held(root), concurrency(GPU, occupy=1):
        names = graph.stages(root, targets)
        fresh = graph.up_to_date(root, names)
        progress = create_progress_artifact(0.0, key="stages", description=f"Of {len(names)} stages")
        for done, name in enumerate(names, 1):
            run_stage(name, root, stage_hours * 3600, stale=name not in fresh)
            update_progress_artifact(progress, 100.0 * done / len(names))
        branch = checkout.keep(root, f"goal: {', '.join(targets)} ({root.name})")
        page.show(root, branch)
        checkout.drop(HOME, root)
    return branch


def promote(version: int | None, dry_run: bool, reason: str) -> None:
    """`goal promote` in the project itself, where the gates are; their table goes to the run's page."""
    words = ["-m", "goal", "promote", *([str(version)] if version else []), f"--reason={reason}"]
    words += ["--dry-run"] if dry_run else []
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        get_run_logger().info(line)

    try:
        stage.command(HOME, "promote", words, log, PROMOTE_SECONDS)
    finally:
        page.gates(lines)
