"""Walk DVC's graph, one Prefect task per stage; promote if all gates pass."""

from functools import partial
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from flows import GPU, checkout, graph, page, stage
from goal.runtime import locks

HOME = Path.cwd()  # prefect.yaml puts each flow run into the project's folder
PROMOTE_SECONDS = 3600.0
DRY_RUN = "goal: dry run: "  # how the answer of a dry run begins, where the version would be refused


def _is_transient(_task: object, _run: object, state: State) -> bool:
    return isinstance(state.data, stage.TransientError)


RETRIED = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 3,
    "retry_delay_seconds": [10, 60, 300],
    "retry_condition_fn": _is_transient,
}


@task(task_run_name="{name}", **RETRIED)
def run_stage(name: str, root: Path, limit_seconds: float, stale: bool) -> State:
    """Run one DVC stage; if it is not stale, or DVC skips it, the task ends as `Skipped`."""
    # A version of the registered model records the flow run that it comes from.
    origin = {"GOAL_BRANCH": checkout.branch(root), "GOAL_FLOW_RUN": str(flow_run.get_id())}
    try:
        ran = stale and stage.run(root, name, get_run_logger().info, limit_seconds, origin)
    except stage.StageError as error:
        # Returned, since Prefect logs a traceback of what is raised; State.result raises it in the flow.
        return Failed(message=str(error), data=error)
    return Completed(name="Completed" if ran else "Skipped", message=name)


def walk(targets: list[str], preset: str | None, overrides: list[str], stage_hours: float) -> str:
    """Run what `targets` need in a checkout of its own; returns the branch with the result.

    A run that fails or is cancelled leaves its checkout: the next one with the same parameters resumes there.
    """
    log = get_run_logger().info
    # The queue runs one flow run at a time, but starts the next one if the server takes a live run for dead.
    gpu = HOME / checkout.PLACE / f"{GPU}.lock"
    busy = partial(log, "the GPU is in use: waiting")
    with checkout.held(HOME, preset, overrides, log) as root, locks.held(gpu, busy):
        log(f"checkout {root.name} of {HOME.name}")
        page.tag(*([preset] if preset else []), checkout.branch(root))
        names = graph.stages(root, targets)
        progress = page.Progress(len(names))
        # It lists the code of each stage; by these listings DVC sees which of the others are stale.
        run_stage(graph.CODE, root, stage_hours * 3600, stale=True, return_state=True).result()
        fresh = graph.up_to_date(root, names)
        checked = False
        for name in names:
            if name != graph.CODE:
                stale = name not in fresh
                if stale and not checked:
                    # What a stage hours from now would refuse is found here.
                    stage.command(root, "check", ["-m", "goal", "check"], log, stage_hours * 3600)
                    checked = True
                run_stage(name, root, stage_hours * 3600, stale, return_state=True).result()
                # The number of pictures is now known.
                checked = checked and not (stale and name == graph.DATA)
            progress.step()
        checkout.keep(root, f"goal: {', '.join(targets)} ({root.name})")
        page.show(root, checkout.branch(root))
        checkout.drop(HOME, root)
    return checkout.branch(root)


def promote(version: int | None, alias: str, dry_run: bool, new_data: bool, reason: str) -> str:
    """Run `goal promote` in the project itself, the table of the gates on the run's page; its last line."""
    words = ["promote", *([str(version)] if version else []), f"--alias={alias}", f"--reason={reason}"]
    words += [*(["--dry-run"] if dry_run else []), *(["--new-data"] if new_data else [])]
    return run_promotion(words, return_state=True).result()


@task(task_run_name="promote", **RETRIED)
def run_promotion(words: list[str]) -> str | State:
    """Run `goal` with these arguments; its output goes to the log and to the run's page."""
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        get_run_logger().info(line)

    try:
        return stage.command(HOME, "promote", ["-m", "goal", *words], log, PROMOTE_SECONDS)[-1]
    except stage.StageError as error:
        return Failed(message=str(error), data=error)
    finally:
        page.gates(lines)
