"""Walk DVC's graph, one Prefect task a stage, and put what came out on the run's page."""

import json
import os
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
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
    """Run what `targets` need in a checkout of its own; the branch that holds the result.

    A run that fails or is cancelled leaves its checkout, where the next one with the same parameters goes on.
    """
    root = checkout.prepare(HOME, preset, overrides)
    get_run_logger().info("checkout %s of %s", root.name, HOME.name)
    with checkout.held(root):
        for name in graph.stages(root, targets):
            run_stage(name, root, stage_hours * 3600)
        branch = checkout.keep(root, f"goal: {', '.join(targets)} ({root.name})")
        show(root, branch)
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
        table = "\n".join(lines)
        create_markdown_artifact(f"```\n{table}\n```", key="gates", description="Every gate of the promotion")


def show(root: Path, branch: str) -> None:
    """Artefacts of the run's page: the benchmark table, what was mined, and where the record lies."""
    table = root / "reports" / "table.md"
    if table.exists():
        text = f"Result: branch `{branch}`\n\n{table.read_text(encoding='utf-8')}"
        create_markdown_artifact(text, key="benchmark-table", description="Every model on every benchmark")
    mined = sorted((root / "pairs").glob("*/summary.json"))
    if mined:
        text = f"Result: branch `{branch}`\n\n" + "\n\n".join(_facts(file) for file in mined)
        create_markdown_artifact(text, key="mined-pairs", description="Sentence-region pairs of each split")
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    registered = root / "metrics" / "registered.json"
    if tracking.startswith("http"):
        create_link_artifact(f"{tracking}/#/experiments", key="mlflow-runs", link_text="Runs in MLflow")
        if registered.exists():
            name = json.loads(registered.read_text(encoding="utf-8"))["name"]
            create_link_artifact(
                f"{tracking}/#/models/{name}",
                key="mlflow-model",
                link_text=f"Registered model {name} in MLflow",
            )


def _facts(file: Path) -> str:
    """The counts of a split as a table."""
    facts = json.loads(file.read_text(encoding="utf-8"))
    rows = [f"| {name} | {value} |" for name, value in facts.items() if isinstance(value, int | float | str)]
    return "\n".join([f"| {file.parent.name} | |", "|---|---|", *rows])
