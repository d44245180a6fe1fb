"""The register stage: a trained model becomes a version of the registered model."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.config import Params, paths
from goal.errors import UserError
from goal.runtime import files
from goal.tracking import lineage, mlflow_store, provenance, records, registry, sync

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("goal.register")

COUNTS = ("images", "texts")
# Tag: the version's entry among MLflow's logged models.
LOGGED = "goal.logged"
# What a version takes over from the run that trained it.
OF_RUN = (
    "goal.commit",
    "goal.uncommitted",
    "goal.code",
    "goal.preset",
    "goal.seed",
    "goal.deps",
    "goal.outs",
)
# The environment of a stage that a flow runs; a version keeps the first flow that registered it.
OF_FLOW = {"goal.branch": "GOAL_BRANCH", "goal.flow_run": "GOAL_FLOW_RUN"}


def run(params: Params) -> None:
    """Make a version of the registered model from a trained one, unless these weights have one; challenger.

    Writes metrics/registered.json. Raises UserError for a missing model, Unavailable where MLflow is down.
    """
    name = params.register_.model
    file = paths.weights_file(name)
    if not file.is_file():
        raise UserError(f"{file}: not found; `dvc repro` trains it, register.model names it")
    digest = files.digest(file)
    splits, numbers = measured(name, digest)
    tags = _tags(params, digest, splits, numbers)
    noted = paths.work_dir("registered") / "last.json"
    if not params.tracking.enabled:
        log.info("register: tracking is off (tracking.enabled is false): no version is made")
    elif (state := _state(params, tags)) and noted.exists() and noted.read_text(encoding="utf-8") == state:
        log.info("register: nothing new, and nobody has written to %s since", mlflow_store.address())
    else:
        sync.run()
        with mlflow_store.answering():
            _register(params, tags)
        files.write_text(noted, _state(params, tags))
    facts = {"name": params.register_.name, "model": name, "digest": digest}
    content = {**facts, "registered": params.tracking.enabled, "metrics": numbers}
    path = Path("metrics") / "registered.json"
    files.write_json(content, path, sort=True)


def measured(name: str, digest: str) -> tuple[dict[str, str], dict[str, float]]:
    """Which pictures and texts these weights were measured on (a digest a benchmark), and the metrics.

    Benchmarks are called test, short, ...; those of other data sets than the pipeline's own <data set>/test.
    """
    splits: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for data_set, folder in paths.numbers_folders(paths.metrics_dir(name)).items():
        for path in sorted(folder.glob("details/*.json")):
            details = _read(path)
            if "protocol" not in details or details["model"]["digest"] != digest:
                continue
            benchmark = f"{data_set}/{path.stem}" if data_set else path.stem
            splits[benchmark] = details["protocol"]["split"]
            found = _read(folder / path.name)
            numbers |= {f"{benchmark}/{key}": value for key, value in found.items() if key not in COUNTS}
    return splits, numbers


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; `goal evaluate` writes it") from error


def _state(params: Params, tags: Mapping[str, str]) -> str:
    """The version, and when the file of the store was last written: the same again need not load MLflow.

    Empty for a server, which has to be asked, and while records are to be sent.
    """
    file = Path(mlflow_store.uri().removeprefix(mlflow_store.SQLITE))
    if not file.is_file() or records.pending():
        return ""
    now = file.stat()
    return json.dumps([str(file), now.st_ino, now.st_size, now.st_mtime_ns, params.register_.name, tags])


def _register(params: Params, tags: dict[str, str]) -> None:
    client = mlflow_store.connect()
    registered = params.register_.name
    experiment = mlflow_store.experiment_id(client, params.tracking.experiment)
    run = mlflow_store.find(client, experiment, {key: tags[key] for key in ("goal.name", "goal.model")})
    if run is None:
        log.warning("register: MLflow has no run that made these weights: the version cannot be promoted")
    else:
        tags = {key: run.data.tags[key] for key in OF_RUN if key in run.data.tags} | tags
    version = registry.existing(client, registered, tags["goal.model"])
    if version is None:
        version = _make(client, params, experiment, run, tags)
        log.info("register: version %s of %s in %s", version.version, registered, mlflow_store.address())
    else:
        _renew(client, version, tags)
        log.info("register: these weights are version %s of %s already", version.version, registered)
    client.set_registered_model_alias(registered, registry.CHALLENGER, version.version)


def _tags(
    params: Params, digest: str, splits: Mapping[str, str], numbers: Mapping[str, float]
) -> dict[str, str]:
    """What a version says of itself. What is not known is left out; promotion then refuses the version."""
    name = params.register_.model
    stages = lineage.made(name)
    return {
        **{tag: os.environ[name] for tag, name in OF_FLOW.items() if name in os.environ},
        **({"goal.lock": provenance.fingerprint(stages)} if stages else {}),
        "goal.name": name,
        "goal.model": digest,
        "goal.data": params.data.name,
        **{f"goal.benchmark.{benchmark}": split for benchmark, split in splits.items()},
        **{f"goal.metric.{metric}": f"{value:g}" for metric, value in numbers.items()},
    }


def _make(
    client: "MlflowClient", params: Params, experiment: str, run: "Run | None", tags: dict[str, str]
) -> "ModelVersion":
    """Save the model, send it and make a version of it."""
    from mlflow.entities import LoggedModelOutput

    from goal.tracking import served_model

    name, registered = params.register_.model, params.register_.name
    file = paths.weights_file(name)
    run_id = run.info.run_id if run else None
    logged = client.create_logged_model(
        experiment, name, source_run_id=run_id, tags=tags, model_type="embedder"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            served_model.save(path, file, params.data.max_megapixels, logged.model_id, run_id)
            _evidence(name, path / registry.EVALUATION)
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _ensure(client, registered)
    # Its place, not models:/<id>, and the id only where a server resolves it or nobody has to: MLflow would
    # look it up at the address that is global in this process, not at this client's.
    safe = run_id or client.tracking_uri.startswith("http")
    return client.create_model_version(
        registered,
        logged.artifact_location,
        run_id,
        tags | {LOGGED: logged.model_id},
        model_id=logged.model_id if safe else None,
        description=_describe(tags),
    )


def _evidence(name: str, folder: Path) -> None:
    """What a promotion judges, what the training says of the model, and what dvc.lock says of both."""
    folder.mkdir(parents=True)
    if (card := paths.model_dir(name) / paths.CARD).exists():
        shutil.copy2(card, folder)
    if paths.metrics_dir(name).is_dir():
        shutil.copytree(paths.metrics_dir(name), folder, dirs_exist_ok=True)
    stages = {stage: vars(locked) for stage, locked in lineage.made(name).items()}
    (folder / "lineage.json").write_text(json.dumps(stages, indent=2, sort_keys=True), encoding="utf-8")


def _ensure(client: "MlflowClient", registered: str) -> None:
    with mlflow_store.unless(mlflow_store.ALREADY):
        client.create_registered_model(
            registered, description="CLIP fine-tuned on long captions: texts and pictures to embeddings."
        )


def _renew(client: "MlflowClient", version: "ModelVersion", tags: Mapping[str, str]) -> None:
    """Bring a version's numbers up to date where the same weights were measured again."""
    changed = {key: value for key, value in tags.items() if version.tags.get(key) != value}
    for key in OF_FLOW.keys() & version.tags.keys():
        changed.pop(key, None)
    if any(key.startswith(("goal.benchmark.", "goal.metric.")) for key in changed):
        with tempfile.TemporaryDirectory() as folder:
            _evidence(tags["goal.name"], Path(folder) / registry.EVALUATION)
            client.log_model_artifacts(
                version.tags[LOGGED], str(Path(folder) / registry.EVALUATION), registry.EVALUATION
            )
        client.update_model_version(version.name, version.version, _describe(tags))
    for key, value in changed.items():
        client.set_model_version_tag(version.name, version.version, key, value)


def _describe(tags: Mapping[str, str]) -> str:
    """The version's page: what it is and its numbers."""
    rows = [
        f"| {key.removeprefix('goal.metric.')} | {value} |"
        for key, value in tags.items()
        if key.startswith("goal.metric.")
    ]
    commit = tags.get("goal.commit", provenance.UNKNOWN)
    head = f"`{tags['goal.name']}` on `{tags['goal.data']}`, commit `{commit}`"
    head += f", branch `{tags['goal.branch']}`" if "goal.branch" in tags else ""
    return "\n".join([head, "", "| metric | percent |", "|---|---|", *rows] if rows else [head])
