"""The register stage: a trained model becomes a version of the registered model."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goal.config import Params, paths
from goal.errors import UserError
from goal.runtime import code, files, locks
from goal.tracking import lineage, mlflow_store, provenance, records, registry, sync

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("goal.register")

COUNTS = ("images", "texts")
# The version's entry among MLflow's logged models.
LOGGED = "goal.logged"
# Facts that are tags of a version too, which MLflow shows in its table; all of them are in one file.
TAGS = ("goal.name", "goal.data", "goal.commit", "goal.model")
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


def run(params: Params) -> None:
    """Make a version of the registered model from a trained one, unless these weights have one; challenger.

    Writes metrics/registered.json. Raises UserError for a missing model, Unavailable where MLflow is down.
    """
    name = params.register_.model
    file = paths.weights_file(name)
    if not file.is_file():
        raise UserError(f"{file}: not found; `dvc repro` trains it, register.model names it")
    digest = files.digest(file)
    splits, numbers, codes = measured(name, digest)
    facts = _facts(params, digest, splits, numbers) | _evaluation(codes)
    noted = paths.work_dir("registered") / "last.json"
    if not params.tracking.enabled:
        log.info("register: tracking is off (tracking.enabled is false): no version is made")
    elif (state := _state(params, facts)) and noted.exists() and noted.read_text(encoding="utf-8") == state:
        log.info("register: nothing new, and nobody has written to %s since", mlflow_store.address())
    else:
        sync.run()
        # Two at once would both find no version of these weights, and make two.
        with mlflow_store.answering(), locks.held(noted.with_name(f"{params.register_.name}.lock")):
            _register(params, facts, numbers)
        files.write_text(noted, _state(params, facts))
    ours = {"name": params.register_.name, "model": name, "digest": digest}
    content = {**ours, "registered": params.tracking.enabled, "metrics": numbers}
    path = Path("metrics") / "registered.json"
    files.write_json(content, path, sort=True)


def measured(name: str, digest: str) -> tuple[dict[str, str], dict[str, float], set[str]]:
    """What these weights were measured on (a digest per benchmark), the metrics, and the code that measured.

    Benchmarks are called test, short, ...; those of other data sets than the pipeline's own <data set>/test.
    """
    splits: dict[str, str] = {}
    numbers: dict[str, float] = {}
    codes: set[str] = set()
    for data_set, folder in paths.numbers_folders(paths.metrics_dir(name)).items():
        for path in sorted(folder.glob("details/*.json")):
            details = _read(path)
            if "protocol" not in details or details["model"]["digest"] != digest:
                continue
            benchmark = f"{data_set}/{path.stem}" if data_set else path.stem
            splits[benchmark] = details["protocol"]["split"]
            codes.add(details.get("code", provenance.UNKNOWN))
            found = _read(folder / path.name)
            numbers |= {f"{benchmark}/{key}": value for key, value in found.items() if key not in COUNTS}
    return splits, numbers, codes


def _evaluation(codes: set[str]) -> dict[str, str]:
    """The code that measured, and whether a commit holds it; empty where nothing was measured.

    An evaluation names its code and no commit, so that DVC's cached results stay valid. It is this checkout's
    code or another, and this checkout's is committed or not.
    """
    checkout, found = provenance.code(), {"goal.evaluation.code": ", ".join(sorted(codes))}
    if codes == {code.digest("stages/evaluate")}:
        found |= {"goal.evaluation.commit": checkout.commit}
        return found | {"goal.evaluation.uncommitted": checkout.uncommitted}
    other = "measured with other code than this checkout's; `dvc repro` measures again"
    return found | {"goal.evaluation.uncommitted": other} if codes else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; `goal evaluate` writes it") from error


def _state(params: Params, facts: Mapping[str, str]) -> str:
    """The version, and when the file of the store was last written: the same again need not load MLflow.

    Empty for a server, which has to be asked, and while records are to be sent.
    """
    file = Path(mlflow_store.uri().removeprefix(mlflow_store.SQLITE))
    if not file.is_file() or records.pending():
        return ""
    now = file.stat()
    return json.dumps([str(file), now.st_ino, now.st_size, now.st_mtime_ns, params.register_.name, facts])


def _register(params: Params, facts: dict[str, str], numbers: Mapping[str, float]) -> None:
    client = mlflow_store.connect()
    registered = params.register_.name
    experiment = mlflow_store.experiment_id(client, params.tracking.experiment)
    run = mlflow_store.find(client, experiment, {key: facts[key] for key in ("goal.name", "goal.model")})
    if run is None:
        log.warning("register: MLflow has no run that made these weights: the version cannot be promoted")
    else:
        facts = {key: run.data.tags[key] for key in OF_RUN if key in run.data.tags} | facts
    version = registry.existing(client, registered, facts["goal.model"])
    if version is None:
        version = _make(client, params, experiment, run, facts)
        log.info("register: version %s of %s in %s", version.version, registered, mlflow_store.address())
        _log_numbers(client, run, facts[LOGGED], numbers)
    else:
        _renew(client, version, facts)
        log.info("register: these weights are version %s of %s already", version.version, registered)
    client.set_registered_model_alias(registered, registry.CHALLENGER, version.version)


def _facts(
    params: Params, digest: str, splits: Mapping[str, str], numbers: Mapping[str, float]
) -> dict[str, str]:
    """What is known of a version. What is not is left out; promotion then refuses the version."""
    name = params.register_.model
    stages = lineage.made(name)
    return {
        **lineage.flow(),
        **({"goal.lock": provenance.fingerprint(stages)} if stages else {}),
        "goal.name": name,
        "goal.model": digest,
        "goal.data": params.data.name,
        **{f"goal.benchmark.{benchmark}": split for benchmark, split in splits.items()},
        **{f"goal.metric.{metric}": f"{value:g}" for metric, value in numbers.items()},
    }


def _make(
    client: "MlflowClient", params: Params, experiment: str, run: "Run | None", facts: dict[str, str]
) -> "ModelVersion":
    """Save the model, send it and make a version of it; its id among the logged models becomes a fact."""
    from mlflow.entities import LoggedModelOutput

    from goal.tracking import served_model

    name, registered = params.register_.model, params.register_.name
    file = paths.weights_file(name)
    run_id = run.info.run_id if run else None
    tags = {tag: facts[tag] for tag in TAGS if tag in facts}
    logged = client.create_logged_model(
        experiment,
        name,
        source_run_id=run_id,
        tags=tags,
        params=dict(run.data.params) if run else None,
        model_type="embedder",
    )
    facts[LOGGED] = logged.model_id
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            served_model.save(path, file, params.data.max_megapixels, logged.model_id, run_id)
            _evidence(facts, path / registry.EVALUATION)
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
        tags,
        model_id=logged.model_id if safe else None,
        description=_describe(facts),
    )


def _log_numbers(
    client: "MlflowClient", run: "Run | None", logged: str, numbers: Mapping[str, float]
) -> None:
    """Log the numbers for the logged model too, which MLflow's list of models shows; run: that made it."""
    from mlflow.entities import Metric

    if run is None:
        return
    number, time = run.info.run_id, run.info.end_time or run.info.start_time
    data = {
        one.dataset.name: {"dataset_name": one.dataset.name, "dataset_digest": one.dataset.digest}
        for one in run.inputs.dataset_inputs
    }
    own = run.data.params.get("data.name", "")
    for name, value in numbers.items():
        # test/<metric>, or <data set>/test/<metric>.
        of = data.get(f"{name.split('/')[0] if name.count('/') > 1 else own}/test", {})
        # The run's own point again, so that the run does not get a second one.
        history = client.get_metric_history(number, name)
        points = [one for one in history if one.value == value]
        later = time, max((one.step for one in history), default=-1) + 1
        when, step = (points[-1].timestamp, points[-1].step) if points else later
        metric = Metric(name, value, when, step, model_id=logged, run_id=number, **of)
        client.log_batch(number, metrics=[metric])


def _evidence(facts: Mapping[str, str], folder: Path) -> None:
    """What a promotion judges, the training's card of the model, what dvc.lock says of both, and `facts`."""
    name = facts["goal.name"]
    folder.mkdir(parents=True)
    if (card := paths.model_dir(name) / paths.CARD).exists():
        shutil.copy2(card, folder)
    if paths.metrics_dir(name).is_dir():
        shutil.copytree(paths.metrics_dir(name), folder, dirs_exist_ok=True)
    stages = {stage: vars(locked) for stage, locked in lineage.made(name).items()}
    (folder / "lineage.json").write_text(json.dumps(stages, indent=2, sort_keys=True), encoding="utf-8")
    files.write_json(dict(facts), folder / registry.FACTS, sort=True)


def _ensure(client: "MlflowClient", registered: str) -> None:
    with mlflow_store.unless(mlflow_store.ALREADY):
        client.create_registered_model(
            registered, description="CLIP fine-tuned on long captions: texts and pictures to embeddings."
        )


def _renew(client: "MlflowClient", version: "ModelVersion", facts: dict[str, str]) -> None:
    """Bring the facts and numbers of a version up to date where the same weights were measured again."""
    with tempfile.TemporaryDirectory() as folder:
        known = registry.facts(version, registry.fetch(client, version, Path(folder)))
        kept = [LOGGED, *lineage.OF_FLOW]
        same = known.get("goal.evaluation.code") == facts.get("goal.evaluation.code")
        if same and known.get("goal.evaluation.uncommitted") == "none":
            # A commit held this code when it was looked for; what the checkout holds now says nothing of it.
            kept += ["goal.evaluation.commit", "goal.evaluation.uncommitted"]
        facts = facts | {fact: known[fact] for fact in kept if fact in known}
        if facts.items() <= known.items():
            return
        _evidence(facts, Path(folder) / "new")
        client.log_model_artifacts(facts[LOGGED], str(Path(folder) / "new"), registry.EVALUATION)
    client.update_model_version(version.name, version.version, _describe(facts))
    for tag in TAGS:
        if tag in facts and version.tags.get(tag) != facts[tag]:
            client.set_model_version_tag(version.name, version.version, tag, facts[tag])
    # Earlier versions of this project kept every fact as a tag.
    for tag in facts.keys() & version.tags.keys() - set(TAGS):
        client.delete_model_version_tag(version.name, version.version, tag)


def _describe(facts: Mapping[str, str]) -> str:
    """The version's page: what it is and its numbers."""
    rows = [
        f"| {key.removeprefix('goal.metric.')} | {value} |"
        for key, value in facts.items()
        if key.startswith("goal.metric.")
    ]
    commit = facts.get("goal.commit", provenance.UNKNOWN)
    head = f"`{facts['goal.name']}` on `{facts['goal.data']}`, commit `{commit}`"
    head += f", branch `{facts['goal.branch']}`" if "goal.branch" in facts else ""
    return "\n".join([head, "", "| metric | percent |", "|---|---|", *rows] if rows else [head])
