"""What a flow run's page in Prefect shows: tables, pictures, and links to exactly this result in MLflow."""

import base64
import json
import os
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact

from goal import config
from goal.errors import UserError

# Pictures of a result: the file, the artefact's key, what it shows.
PICTURES = (
    ("reports/pictures/loss.png", "loss-curve", "Terms of the loss of every training"),
    ("pairs/contact-sheet.png", "contact-sheet", "Sentences and the regions that were found for them"),
)


def show(root: Path, branch: str) -> None:
    """Put what lies in the checkout on the run's page; what a flow did not make is left out."""
    _table(root / "reports" / "table.md", branch)
    _mined(root / "pairs", branch)
    for file, key, words in PICTURES:
        if (root / file).exists():
            # As a data address: the page shows it also when no other server runs.
            data = base64.b64encode((root / file).read_bytes()).decode()
            create_image_artifact(f"data:image/png;base64,{data}", key=key, description=words)
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        try:
            _links(root)
        except UserError as error:
            get_run_logger().warning("no links to MLflow: %s", error)


def gates(lines: list[str]) -> None:
    """What `goal promote` printed."""
    table = "\n".join(lines)
    create_markdown_artifact(f"```\n{table}\n```", key="gates", description="Every gate of the promotion")


def _table(file: Path, branch: str) -> None:
    if file.exists():
        text = f"Result: branch `{branch}`\n\n{file.read_text(encoding='utf-8')}"
        create_markdown_artifact(text, key="benchmark-table", description="Every model on every benchmark")


def _mined(folder: Path, branch: str) -> None:
    found = sorted(folder.glob("*/summary.json"))
    if found:
        text = "\n\n".join([f"Result: branch `{branch}`", *map(_counts, found)])
        create_markdown_artifact(text, key="mined-pairs", description="Sentence-region pairs of each split")


def _counts(file: Path) -> str:
    facts = json.loads(file.read_text(encoding="utf-8"))
    rows = [f"| {name} | {value} |" for name, value in facts.items() if isinstance(value, int | float | str)]
    return "\n".join([f"| {file.parent.name} | |", "|---|---|", *rows])


def _links(root: Path) -> None:
    """Links to the experiment and, where the flow registered, to the version and the run that trained it."""
    from goal import registry, tracking

    with registry.answering():
        client = tracking.connect(tracking.uri())
        experiment = tracking.experiment_id(client, config.load(root / "params.yaml").tracking.experiment)
        links = {"mlflow-runs": (f"experiments/{experiment}", "All runs of the experiment")}
        file = root / "metrics" / "registered.json"
        facts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"registered": False}
        version = registry.existing(client, facts["name"], facts["digest"]) if facts["registered"] else None
    if version is not None:
        name, number = version.name, version.version
        links["mlflow-version"] = (f"models/{name}/versions/{number}", f"{name} version {number}")
        if version.run_id:
            run = f"experiments/{experiment}/runs/{version.run_id}"
            links["mlflow-run"] = (run, f"The training of version {number}")
    # MLFLOW_PAGES: its address for a browser, where that is not the one that the worker uses.
    pages = os.environ.get("MLFLOW_PAGES") or tracking.address()
    for key, (place, words) in links.items():
        create_link_artifact(f"{pages}/#/{place}", words, key=key, description="In MLflow")
